"""Writes what the documentation says of the code: `python -m tests.write_reference`.

docs/reference.md and docs/mechanisms.md in whole, and in both READMEs the table of options and backends. Everything
comes from the code: signatures and docstrings, the cards of mechanisms, what `regard.dispatch` answers, what
`regard xray --help` prints. A test fails when a file is not as this module would write it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import regard
from regard import masks, positions
from tests import write_mechanisms

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference.md"
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
ROOMS = ("regard", "regard.masks", "regard.positions", "regard.explain", "regard.reference")
BACKENDS = ("native", "sdpa", "eager", "flex")
START, END = "<!-- backends: written by tests/write_reference.py -->", "<!-- backends: end -->"
ANSWERS = {"en": ("yes", "no"), "zh": ("是", "否")}
HEADINGS = {"en": "| asked for | native | sdpa | eager | flex |", "zh": "| 所求 | native | sdpa | eager | flex |"}

HOW_WRITTEN = (
    "Written by `python -m tests.write_reference` from the code; a test fails when it is out of date. The full text of "
    "each name is its docstring: `help(regard.attention)`."
)
HOW_ANSWERED = (
    "What each backend says to a problem that asks for one thing. Where it says no, `backend=` with its name raises "
    '`UnsupportedError` with this reason, and `backend="auto"` asks the next.'
)


@dataclass(frozen=True)
class Case:
    """One row of the table: a small problem on CPU that asks for one thing."""

    en: str
    zh: str
    arguments: Callable[[], dict[str, Any]]

    def problem(self) -> dict[str, Any]:
        """The arguments of `regard.attention`."""
        query, key, value = torch.randn(3, 1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
        return {"query": query, "key": key, "value": value, **self.arguments()}

    def answers(self) -> dict[str, regard.Choice]:
        """What each backend says, by name."""
        problem = self.problem()
        tensors = [problem.pop(name) for name in ("query", "key", "value")]
        return {choice.backend: choice for choice in regard.dispatch(*tensors, **problem).choices}


def _random(*shape: int, gradient: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype).requires_grad_(gradient)


def _qkv(*shape: int, dtype: torch.dtype = torch.float32, gradient: bool = False) -> dict[str, Any]:
    return {name: _random(*shape, dtype=dtype, gradient=gradient) for name in ("query", "key", "value")}


def _not_finite() -> dict[str, Any]:
    key = _random(1, 2, 8, 4)
    key[0, 0, 3] = torch.nan
    return {"key": key}


CASES = (
    Case("`mask=Causal()`", "`mask=Causal()`", lambda: {"mask": masks.Causal()}),
    Case(
        "any other mask, or a bool tensor",
        "其他掩码或布尔张量",
        lambda: {"mask": masks.SlidingWindow(2) | masks.GlobalTokens(1)},
    ),
    Case("`position=RoPE`", "`position=RoPE`", lambda: {"position": positions.RoPE(4)}),
    Case("`position=ALiBi`", "`position=ALiBi`", lambda: {"position": positions.ALiBi(2)}),
    Case(
        "`position=T5Bias`, `ContinuousBias`, being trained",
        "训练中的 `position=T5Bias`、`ContinuousBias`",
        lambda: {"position": positions.T5Bias(2)},
    ),
    Case(
        "`position=Shaw`, `TransformerXL`",
        "`position=Shaw`、`TransformerXL`",
        lambda: {"position": positions.Shaw(4, 3)},
    ),
    Case("`bias`", "`bias`", lambda: {"bias": _random(8, 8)}),
    Case("`bias` that needs a gradient", "需要梯度的 `bias`", lambda: {"bias": _random(8, 8, gradient=True)}),
    Case("`scale`", "`scale`", lambda: {"scale": 0.3}),
    Case("`softcap`", "`softcap`", lambda: {"softcap": 5.0}),
    Case("`sink`", "`sink`", lambda: {"sink": _random(2)}),
    Case("`dropout_p`, `seed`", "`dropout_p`、`seed`", lambda: {"dropout_p": 0.5, "seed": 7}),
    Case("`enable_gqa`", "`enable_gqa`", lambda: {"query": _random(1, 4, 8, 4), "enable_gqa": True}),
    Case("`value` of another width", "宽度不同的 `value`", lambda: {"value": _random(1, 2, 8, 6)}),
    Case(
        "`q_len` other than `kv_len`",
        "`q_len` 与 `kv_len` 不同",
        lambda: {"query": _random(1, 2, 3, 4), "mask": masks.Causal("bottom_right")},
    ),
    Case("`return_lse`, no gradient", "`return_lse`，不求梯度", lambda: {"return_lse": True}),
    Case(
        "`return_lse`, 4 M scores or more",
        "`return_lse`，分数达 4 M 个及以上",
        lambda: {**_qkv(1, 1, 2048, 4), "return_lse": True},
    ),
    Case(
        "`return_lse` and a gradient",
        "`return_lse` 并求梯度",
        lambda: {**_qkv(1, 2, 8, 4, gradient=True), "return_lse": True},
    ),
    Case("gradients of query, key, value", "query、key、value 的梯度", lambda: _qkv(1, 2, 8, 4, gradient=True)),
    Case("bfloat16, float16", "bfloat16、float16", lambda: _qkv(1, 2, 8, 4, dtype=torch.bfloat16)),
    Case("float64", "float64", lambda: _qkv(1, 2, 8, 4, dtype=torch.float64)),
    Case(
        "float64, 4 M scores or more", "float64，分数达 4 M 个及以上", lambda: _qkv(1, 1, 2048, 4, dtype=torch.float64)
    ),
    Case("NaN or Inf in the input", "输入含 NaN 或 Inf", _not_finite),
    Case("a text of length 0", "长度为 0 的文本", lambda: _qkv(1, 2, 0, 4)),
)


def backends_table(language: str) -> str:
    """The table of the READMEs: yes or no for each case and backend."""
    yes, no = ANSWERS[language]
    rows = [HEADINGS[language], "|---|---|---|---|---|"]
    for case in CASES:
        answers = case.answers()
        cells = (no if answers[name].status == "refused" else yes for name in BACKENDS)
        rows.append(f"| {getattr(case, language)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def readme(language: str) -> str:
    """A README with its table of backends written anew."""
    before, _, rest = READMES[language].read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{backends_table(language)}\n{END}{after}"


def reference() -> str:
    """docs/reference.md."""
    parts = [
        "# Reference",
        HOW_WRITTEN,
        *(_room(name) for name in ROOMS),
        "## Backends on CPU",
        HOW_ANSWERED,
        _reasons(),
        "## `regard xray --help`",
        f"```text\n{_help('xray')}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _room(name: str) -> str:
    module = import_module(name)
    return "\n\n".join([f"## `{name}`", _first_paragraph(module), "\n".join(_entries(module))])


def _entries(module: ModuleType) -> Iterator[str]:
    for name in public_names(module):
        found = getattr(module, name)
        if name == "__version__":
            yield "- `__version__`: the version, a string."
        elif isinstance(found, ModuleType):
            yield f"- `{name}`: {_first_paragraph(found)}"
        else:
            yield f"- `{name}{_parameters(found)}`: {_first_paragraph(found)}"


def public_names(module: ModuleType) -> list[str]:
    """The names that users may rely on."""
    return ["Result", "attention"] if module.__name__ == "regard.reference" else sorted(module.__all__)


def _parameters(found: Any) -> str:
    """The parameters with their defaults and without their types; nothing for errors and plain records."""
    if inspect.isclass(found) and (issubclass(found, Exception) or inspect.isabstract(found)):
        return ""
    signature = inspect.signature(found)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _first_paragraph(found: Any) -> str:
    return " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())


def _reasons() -> str:
    rows = [HEADINGS["en"], "|---|---|---|---|---|"]
    for case in CASES:
        answers = case.answers()
        cells = (f"no: {answers[n].reason}" if answers[n].status == "refused" else "yes" for n in BACKENDS)
        rows.append(f"| {case.en} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _help(command: str) -> str:
    """The help text of a command, 100 columns wide."""
    from regard.cli import main

    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def written() -> dict[Path, str]:
    """Every file this module writes, with its text."""
    readmes = {path: readme(language) for language, path in READMES.items()}
    return {REFERENCE: reference(), write_mechanisms.PAGE: write_mechanisms.page(), **readmes}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
