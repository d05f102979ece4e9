"""`regard audit`: what attention really does, recovered from its outputs, beside what it is declared to do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from regard.trust.audit import Audit

Flag = Annotated[bool, Parameter(negative="")]


def audit(
    target: str,
    /,
    *,
    mask: str | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    gqa: Flag = False,
    batch: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int = 16,
    at: Annotated[tuple[str, ...] | None, Parameter(negative="")] = None,
    layout: Literal["bhnd", "bnhd"] = "bhnd",
    alone: Flag = False,
    kind: Literal["encoder", "decoder", "encoder_decoder", "vision"] | None = None,
    causal: bool | None = None,
    strict: Flag = False,
    draw: Path | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Recover what attention does from its outputs alone, and name every difference from what is declared.

    Of a whole model (a Hugging Face folder or hub name, or package.module:factory) every leak: does the future reach
    the past, padding the tokens, one document or one sample the next, and is a text in chunks read as in one pass.

    Found are the mask and its corner, the scale, softcap, sinks, what is added to the scores, which key/value head is
    read by whom, dropped weights, and what gets past a mask. Nothing declared is plain attention over every pair.
    Ends with 1 when something was found.

    Parameters
    ----------
    target
        native, sdpa, flex, eager, auto or torch; module:function, called as f(query, key, value, ...);
        huggingface:NAME, an attention that is registered in transformers; or a whole model, of which --kind, --causal,
        --strict and --json alone say something.
    mask
        Which pairs may attend, parts joined by +: causal+window:4,0. See docs/trust.md.
    scale
        Factor of the dot products. Left out: 1 / sqrt(head_dim).
    softcap
        Scores become softcap * tanh(score / softcap).
    sink
        Logit of each head's sink, one number for each head.
    gqa
        Several query heads share a key/value head.
    batch
        Samples to probe with. Left out: as many as the mask has, or 2.
    heads
        Query heads to probe with. Left out: as many as sinks, or 4.
    kv_heads
        Key/value heads to probe with. Left out: as many as query heads, or half of them with --gqa.
    head_dim
        Width of a head.
    at
        Lengths to probe at, as 12x12 (queries x keys), the main ones first. Left out: lengths at which the mask shows.
    layout
        bhnd (batch, heads, length, head_dim) or bnhd, of the tensors that the target takes.
    alone
        Ask the target for nothing: it should do by itself what is declared.
    kind
        Of a whole model; known of one of transformers.
    causal
        Tokens of a whole model must not see later ones. Left out: those of a decoder. Of a model that is not of
        transformers it is not asked without this or --kind.
    strict
        Warnings count as findings.
    draw
        Draw the declared mask and the recovered one there: .png, .svg or .pdf.
    json_output
        Print everything as JSON.
    """
    from regard._errors import RegardError
    from regard.cli._app import FAILED, OK, WRONG_USAGE, complain
    from regard.cli.audit_model import audit_named_model, names_model

    sizes = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "layout": layout}
    wish = _Wish(target, mask, scale, softcap, sink, gqa, at, alone, strict, sizes)
    try:
        _check_picture(draw)
        if names_model(target):
            return audit_named_model(target, kind=kind, causal=causal, strict=strict, json_output=json_output)
        _check_of_attention(target, told=kind is not None or causal is not None)
        found = _audited(wish)
        if draw is not None:
            found.draw(draw)
    except RegardError as error:
        complain("regard audit", str(error))
        return WRONG_USAGE
    _show(found, draw, json_output=json_output)
    return OK if found.passed else FAILED


@dataclass(frozen=True)
class _Wish:
    """What is to be audited, what it is declared to do, and how it is probed."""

    target: str
    mask: str | None
    scale: float | None
    softcap: float | None
    sink: tuple[float, ...] | None
    gqa: bool
    at: tuple[str, ...] | None
    alone: bool
    strict: bool
    sizes: dict[str, Any]


def _audited(wish: _Wish) -> Audit:
    import torch

    from regard.cli.mask_option import mask_of
    from regard.trust.audit import audit as run

    sys.path.insert(0, "")  # `regard audit mine:attention` finds mine.py where the user stands
    try:
        return run(
            wish.target,
            mask=None if wish.mask is None else mask_of(wish.mask),
            scale=wish.scale,
            softcap=wish.softcap,
            sink=None if wish.sink is None else torch.tensor(wish.sink),
            enable_gqa=wish.gqa,
            asked=() if wish.alone else None,
            lengths=None if wish.at is None else [_lengths(text) for text in wish.at],
            strict=wish.strict,
            **wish.sizes,
        )
    finally:
        if "" in sys.path:
            sys.path.remove("")


def _check_of_attention(target: str, *, told: bool) -> None:
    from regard._errors import ArgumentError

    if told:
        raise ArgumentError(
            "--kind, --causal",
            expected="a whole model",
            got=repr(target),
            do="Attention is declared by --mask, as in --mask causal.",
        )


def _check_picture(path: Path | None) -> None:
    """Say before the work, not after it, that the picture cannot be written."""
    from regard.masks._draw import checked_path

    if path is not None:
        checked_path(path)


def _lengths(text: str) -> tuple[int, int]:
    from regard._errors import ArgumentError

    queries, cross, keys = text.partition("x")
    if not cross or not queries.isdigit() or not keys.isdigit() or "0" in (queries, keys):
        raise ArgumentError("--at", expected="queries x keys, as 12x12", got=repr(text), do="Say both lengths.")
    return int(queries), int(keys)


def _show(found: Audit, drawn: Path | None, *, json_output: bool) -> None:
    if json_output:
        sys.stdout.write(found.json() + "\n")
        return
    sys.stdout.write(f"{found}\n")
    if drawn is not None:
        sys.stdout.write(f"{drawn}\n")
