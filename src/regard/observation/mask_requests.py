"""What Hugging Face models asked their mask functions for.

A mask function answers with a tensor, a BlockMask, or None when the kernel can do without. Which request a
layer's mask came from is told by the answer's identity; answers are held weakly, so nothing is kept alive.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

KEPT = 8
"""Requests remembered for each thread; a model makes one for each kind of layer."""

_FACTS = ("batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "mask_function", "attention_mask")
_Request = tuple[Callable[[], Any], dict[str, Any]]
_requests: dict[int, list[_Request]] = {}


def noted(original: Callable[..., Any]) -> Callable[..., Any]:
    """The same mask function, which also remembers what it was asked for."""

    @functools.wraps(original)
    def observed(*args: Any, **named: Any) -> Any:
        mask = original(*args, **named)
        if not args and "mask_function" in named:
            answer: Callable[[], Any] = (lambda: None) if mask is None else weakref.ref(mask)
            asked = {name: named[name] for name in _FACTS if name in named}
            thread = threading.get_ident()
            _requests[thread] = [*_requests.get(thread, [])[1 - KEPT :], (answer, asked)]
        return mask

    return observed


def forget() -> None:
    """Drop every request; nothing observes any more."""
    _requests.clear()


def declared(mask: Any, q_len: int, kv_len: int) -> Callable[[], Tensor | None] | None:
    """Builds the bool mask (batch, 1, q_len, kv_len) that the model asked for and got `mask` as the answer.

    None when it did not ask; the builder gives None when several requests have this answer and differ.
    """
    found = [
        asked
        for answer, asked in _requests.get(threading.get_ident(), [])
        if (answer() is None) == (mask is None)
        and answer() is mask
        and (int(asked["q_length"]), int(asked["kv_length"])) == (q_len, kv_len)
    ]
    return (lambda: _agreed(found)) if found else None


def _agreed(requests: list[dict[str, Any]]) -> Tensor | None:
    masks = [_evaluate(asked) for asked in requests]
    first = masks[-1]
    return first if all(first is not None and mask is not None and torch.equal(mask, first) for mask in masks) else None


def _evaluate(asked: dict[str, Any]) -> Tensor | None:
    """The mask function on every pair, with the padding; None where it cannot be asked about indices."""
    batch = torch.arange(asked["batch_size"])[:, None, None, None]
    query = torch.arange(asked["q_length"])[None, None, :, None] + int(asked.get("q_offset", 0))
    key = torch.arange(asked["kv_length"])[None, None, None, :] + int(asked.get("kv_offset", 0))
    try:
        allowed = torch.as_tensor(asked["mask_function"](batch, torch.zeros_like(batch), query, key)).cpu()
    except (RuntimeError, IndexError, TypeError, ValueError):  # not written over indices, or on another device
        return None
    padding = asked.get("attention_mask")
    if isinstance(padding, Tensor) and padding.dim() == 2:
        allowed = allowed & padding[:, None, None, : asked["kv_length"]].bool().cpu()
    return allowed.expand(asked["batch_size"], 1, asked["q_length"], asked["kv_length"])
