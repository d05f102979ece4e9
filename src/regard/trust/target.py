"""A target: whatever computes attention, called in one way.

`as_target` takes a backend's name, "torch", "module:function", or any callable f(query, key, value, ...), and says
which options it offers. What it does not offer is refused with `UnsupportedError` when it is asked, so that nothing is
ever left out of a question without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard._attention import attention
from regard._errors import ArgumentError, UnsupportedError
from regard._front_door import Options, build_problem
from regard.backends import BACKENDS, Backend
from regard.masks._align import Align
from regard.trust.calling import Calling, Layout
from regard.trust.question import OPTIONS, Question
from regard.trust.signature import FORMS, NAMES, Signature, signature_of

Adapter = Callable[[Question], Tensor] | Mapping[str, str | None]
BACKEND_NAMES = (*(backend.name for backend in BACKENDS), "auto")


@dataclass(frozen=True)
class Target:
    """What is examined.

    name: how reports call it.
    offers: options of a question that it accepts, in some form; `call` refuses a form that it cannot say.
    call: from a question to the output, (batch, heads, q_len, value_dim).
    call_with_lse: the same with the lse, (batch, heads, q_len), or None where it gives none.
    code: a Python expression that makes this target again, or "" when nothing can be imported that does.
    """

    name: str
    offers: frozenset[str]
    call: Callable[[Question], Tensor]
    call_with_lse: Callable[[Question], tuple[Tensor, Tensor]] | None = None
    code: str = ""


def as_target(
    target: object, adapter: Adapter | None = None, *, layout: Layout = "bhnd", corner: Align | None = None
) -> Target:
    """What computes attention, as a `Target`.

    Args:
        target: a Target; "native", "sdpa", "flex", "eager" or "auto"; "torch" (F.scaled_dot_product_attention);
            "module:function"; a `regard.backends.Backend`; any callable f(query, key, value, ...), whose signature
            is read (`regard.trust.signature` has the names).
        adapter: overrules what the signature says: from an option to the name of the parameter that serves it (None:
            served without one), or a function that answers a whole question.
        layout: in which the callable has its tensors: "bhnd" (batch, heads, length, head_dim), or "bnhd".
        corner: of the callable's `causal` and windows where q_len != kv_len: "top_left" or "bottom_right". Not said,
            such problems are not asked by flag (`is_causal` is torch's: top-left).

    Raises:
        ArgumentError: nothing of that name, or nothing that can be called.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Backend):
        return _of_backend(target)
    if isinstance(target, str) and target in BACKEND_NAMES and adapter is None:
        return _of_name(target)
    function: Any = _imported(target) if isinstance(target, str) else target
    if inspect.isclass(function) and issubclass(function, Backend):
        return _of_backend(function())
    if not callable(function):
        raise ArgumentError(
            "target",
            expected="a backend's name, 'torch', 'module:function' or a callable f(query, key, value, ...)",
            got=repr(target),
            do="Pass the function itself, or adapter= where its arguments are other ones.",
        )
    name = target if isinstance(target, str) else _name_of(function)
    if callable(adapter):
        return Target(name, frozenset(OPTIONS), adapter)
    code = repr(target) if isinstance(target, str) else _importable(function)
    calling = Calling(name, function, _overruled(signature_of(function), adapter), layout, corner)
    offers = calling.signature.offers
    with_lse = calling.output_and_lse if "return_lse" in offers else None
    return Target(name, offers, calling.output, with_lse, _code(code, adapter, layout, corner))


def why_refused(error: Exception, question: Question, *, also: tuple[str, ...] = ()) -> str | None:
    """The reason when `error` refuses an option or the dtype of the question, or None when it is no refusal.

    UnsupportedError and NotImplementedError always are. TypeError, ValueError and a failed assert are when they name
    an option of the question, or one of the words in `also`; any of these and a RuntimeError when they name its dtype.
    """
    if isinstance(error, UnsupportedError):
        return "; ".join(error.reasons.values())
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    if isinstance(error, NotImplementedError):
        return told
    asked = question.asked()
    words = [*also, *(name for what, names in NAMES.items() if FORMS.get(what, what) in asked for name in names)]
    if isinstance(error, (TypeError, ValueError, AssertionError)) and _mentions(error, words):
        return told
    kinds = (TypeError, ValueError, AssertionError, RuntimeError)
    return told if isinstance(error, kinds) and _mentions(error, _DTYPE_WORDS[question.dtype]) else None


_DTYPE_WORDS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.float16: ("float16", "fp16", "half", "dtype", "data type"),
    torch.bfloat16: ("bfloat16", "bf16", "dtype", "data type"),
    torch.float32: ("float32", "fp32", "dtype", "data type"),
    torch.float64: ("float64", "fp64", "double", "dtype", "data type"),
}


def _mentions(error: Exception, words: list[str] | tuple[str, ...]) -> bool:
    told = str(error).lower()
    return any(word.lower() in told for word in words)


# ------------------------------------------------------------------------------------- regard's own backends


def _of_name(name: str) -> Target:
    def call(question: Question) -> Tensor:
        options = cast("Options", question.options)
        return attention(question.query, question.key, question.value, backend=name, **options)

    def call_with_lse(question: Question) -> tuple[Tensor, Tensor]:
        options = cast("Options", question.options)
        return attention(question.query, question.key, question.value, backend=name, return_lse=True, **options)

    return Target(name, frozenset((*OPTIONS, "return_lse")), call, call_with_lse, f'as_target("{name}")')


def _of_backend(backend: Backend) -> Target:
    """A backend that is being written, or a changed copy of one: asked for its support, then run."""

    def run(question: Question, *, return_lse: bool) -> tuple[Tensor, Tensor | None]:
        problem = build_problem(
            question.query, question.key, question.value, return_lse=return_lse, **cast("Options", question.options)
        )
        answer = backend.support(problem)
        if not answer.ok:
            raise UnsupportedError({backend.name: answer.reason})
        return backend.run(problem)

    def call_with_lse(question: Question) -> tuple[Tensor, Tensor]:
        output, lse = run(question, return_lse=True)
        if lse is None:
            raise AssertionError(f"backend {backend.name} said yes to return_lse and gave none")
        return output, lse

    offers = frozenset((*OPTIONS, "return_lse"))
    code = "" if vars(backend) else _importable(type(backend))  # one with a state of its own cannot be made again
    return Target(
        backend.name,
        offers,
        lambda question: run(question, return_lse=False)[0],
        call_with_lse,
        _code(code, None, "bhnd", None),
    )


# ---------------------------------------------------------------------------------------- names and places


def _overruled(signature: Signature, adapter: Mapping[str, str | None] | None) -> Signature:
    unknown = sorted(set(adapter or ()) - set(NAMES))
    if unknown:
        raise ArgumentError(
            "adapter",
            expected=f"keys out of {', '.join(NAMES)}",
            got=", ".join(unknown),
            do="For anything else pass a function from a Question to the output.",
        )
    return replace(signature, parameters={**signature.parameters, **(adapter or {})})


def _imported(name: str) -> object:
    if name == "torch":
        return scaled_dot_product_attention
    module_name, _, path = name.partition(":")
    try:
        found: object = import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as problem:  # whatever a module does while it is imported
        told = problem if isinstance(problem, (ImportError, AttributeError)) else f"{type(problem).__name__}: {problem}"
        raise ArgumentError(
            "target",
            expected=f"one of {', '.join((*BACKEND_NAMES, 'torch'))}, or module:function",
            got=repr(name),
            do=f"It cannot be imported: {told}.",
        ) from problem
    return found


def _name_of(function: object) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)


def _importable(function: object) -> str:
    """How `as_target` would name it, quoted, or "" when it cannot be found by name."""
    if function is scaled_dot_product_attention:
        return repr("torch")
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return ""
    try:
        found = _imported(f"{module}:{name}")
    except ArgumentError:
        return ""
    return repr(f"{module}:{name}") if found is function else ""


def _code(code: str, adapter: Mapping[str, str | None] | None, layout: Layout, corner: Align | None) -> str:
    if not code:
        return ""
    more = [repr(dict(adapter))] if adapter else []
    more += [f"layout={layout!r}"] if layout != "bhnd" else []
    more += [f"corner={corner!r}"] if corner is not None else []
    return f"as_target({', '.join([code.replace(chr(39), chr(34)), *more])})"
