"""What a mask forbids, one rule at a time: later keys, keys further back, padding, other documents, the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from regard.masks import Causal, Documents, Keys, Mask, Padding, SlidingWindow
from regard.trust.audit.findings import Finding

Kind = Literal["after", "before", "padding", "documents", "mask"]


@dataclass(frozen=True, eq=False)
class Rule:
    """One thing that is forbidden.

    kind: "after" (later keys), "before" (keys further back), "padding", "documents", or another "mask".
    forbids: bool, broadcastable to (batch, heads, q_len, kv_len).
    name: the mask as it is written.
    bound: of the two sides, how many keys they reach.
    is_causal: a bound that a causal mask sets, and not a window alone.
    distance: of the two sides, key - query as their bound counts it, (q_len, kv_len); else empty.
    """

    kind: Kind
    forbids: Tensor
    name: str
    bound: int = 0
    is_causal: bool = False
    distance: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def broken(self, pairs: Tensor, *, whole: bool, where: str) -> Finding:
        """The finding when these forbidden pairs attend; `whole`: all that this rule alone forbids."""
        evidence: dict[str, object] = {"pairs": int(pairs.sum()), "whole": whole}
        if self.kind == "padding":
            told = "padding attended" if whole else "some padded keys are attended to"
            return Finding("padding_attended", f"{told}{where}, declared {self.name}", evidence)
        if self.kind == "documents":
            told = "documents cross" if whole else "some documents reach another"
            return Finding("documents_cross", f"{told}{where}, declared {self.name}", evidence)
        if self.kind == "mask":
            code = "mask_ignored" if whole else "mask_differs"
            told = "is ignored" if whole else f"lets {evidence['pairs']} forbidden pairs attend"
            return Finding(code, f"{self.name} {told}{where}", evidence)
        return self._bound_broken(pairs, evidence, whole=whole, where=where)

    def _bound_broken(self, pairs: Tensor, evidence: dict[str, object], *, whole: bool, where: str) -> Finding:
        side = "right" if self.kind == "after" else "left"
        if whole:
            if self.is_causal:
                return Finding(
                    "causal_missing", f"causal mask ignored: every later key is attended to{where}", evidence
                )
            told = f"window_{side} ignored{where}, declared {self.bound}"
            return Finding(f"window_{side}_ignored", told, {**evidence, "declared": self.bound})
        reach, every = self._reach(pairs)
        evidence |= {"found": reach, "declared": self.bound}
        some = "" if every else "in places "
        if self.is_causal:
            told = f"the future is attended to{where}, {some}up to {reach} keys ahead"
            return Finding("future_attended", told, evidence)
        word = "after" if side == "right" else "before"
        told = f"the window reaches {some}{reach} keys {word} the query{where}, declared {self.bound}"
        return Finding(f"window_{side}_differs", told, evidence)

    def _reach(self, pairs: Tensor) -> tuple[int, bool]:
        """How far the pairs reach, and whether every pair up to there is among them."""
        away = self.distance if self.kind == "after" else -self.distance
        away = away.expand(pairs.shape)
        reach = int(away[pairs].max())
        wrong = pairs.flatten(2).any(-1)[:, :, None, None]
        return reach, torch.equal(pairs, (away > self.bound) & (away <= reach) & wrong)


def rules_of(parts: Iterable[Mask], q_len: int, kv_len: int) -> list[Rule]:
    """The rules of masks that are met, with one rule where two forbid the same side."""
    found = [rule for part in parts for rule in rules_of_one(part, q_len, kv_len)]
    sides = [*_tightest(found, "after"), *_tightest(found, "before")]
    return sides + [rule for rule in found if rule.kind not in {"after", "before"}]


def _tightest(rules: Sequence[Rule], kind: Kind) -> list[Rule]:
    """Causal and a window that ends at the query forbid the same."""
    same = [rule for rule in rules if rule.kind == kind]
    if not same:
        return []
    tight = min(same, key=lambda rule: rule.bound)
    return [replace(tight, is_causal=any(rule.is_causal and rule.bound == tight.bound for rule in same))]


def rules_of_one(part: Mask, q_len: int, kv_len: int) -> list[Rule]:
    """The rules of one mask: two of a window, one of any other."""
    if isinstance(part, Causal | SlidingWindow):
        return _sides(part, q_len, kv_len)
    forbids = ~part.dense(q_len, kv_len)
    kind: Kind = (
        "padding" if isinstance(part, Padding | Keys) else "documents" if isinstance(part, Documents) else "mask"
    )
    return [Rule(kind, forbids, repr(part))]


def _sides(part: Causal | SlidingWindow, q_len: int, kv_len: int) -> list[Rule]:
    band = part.band(q_len, kv_len)
    distance = torch.arange(kv_len)[None] - torch.arange(q_len)[:, None] - band.offset
    name, rules = repr(part), list[Rule]()
    if band.after is not None:
        causal = isinstance(part, Causal)
        rules.append(Rule("after", distance > band.after, name, band.after, is_causal=causal, distance=distance))
    if band.before is not None:
        rules.append(Rule("before", distance < -band.before, name, band.before, distance=distance))
    return rules
