"""The recovered mask beside the declared one: what differs, named by the part of the declaration it breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.masks import Causal, Dense, Mask, SlidingWindow
from regard.masks._align import Align
from regard.trust.audit.describe_mask import describe
from regard.trust.audit.findings import Finding
from regard.trust.audit.mask_rules import Rule, rules_of
from regard.trust.audit.recover import Recovered


@dataclass(frozen=True, eq=False)
class DeclaredMask:
    """What may attend.

    mask: as it was declared, or None.
    allowed: bool (batch, heads, q_len, kv_len).
    """

    mask: Mask | None
    allowed: Tensor

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The masks that it is the intersection of; a bool tensor is taken for what it looks like."""
        if self.mask is None:
            return ()
        parts: list[Mask] = []
        for part in self.mask.conjuncts:
            named = describe(self.allowed).mask if isinstance(part, Dense) and len(self.mask.conjuncts) == 1 else None
            parts += [part] if named is None else named.conjuncts
        return tuple(parts)


def compare_masks(declared: DeclaredMask, found: Recovered) -> list[Finding]:
    """Every difference, named; none when the recovered mask is the declared one.

    Rows that may attend to nothing are judged apart: what they do says nothing of the mask.
    """
    corner = _corner(declared, found)
    if corner is not None:
        return [corner]
    findings = list(_nan_rows(declared, found))
    full = declared.allowed.any(-1, keepdim=True)
    findings += _empty_rows(found, ~full.squeeze(-1))
    judged = full & ~found.unknown[..., None]
    difference = _Difference(declared, wanted=declared.allowed & judged, seen=found.allowed & judged, judged=judged)
    return findings if difference.none else findings + difference.named()


def _corner(declared: DeclaredMask, found: Recovered) -> Finding | None:
    """The mask with its bands in the other corner, exactly; what its empty rows do is not judged."""
    q_len, kv_len = declared.allowed.shape[-2:]
    other = _other_corner(declared.mask, q_len, kv_len)
    if other is None:
        return None
    other = other.expand(declared.allowed.shape)
    judged = other.any(-1, keepdim=True)
    same = torch.equal(found.allowed & judged, other) and not bool((found.unknown & judged.squeeze(-1)).any())
    if not same or torch.equal(other, declared.allowed):
        return None
    aligns = {getattr(part, "align", None) for part in declared.parts}
    names = ("top-left", "bottom-right") if "bottom_right" in aligns else ("bottom-right", "top-left")
    evidence = {"found": names[0], "declared": names[1], "q_len": q_len, "kv_len": kv_len}
    return Finding("causal_corner", f"causal corner {names[0]}, declared {names[1]}", evidence)


def _nan_rows(declared: DeclaredMask, found: Recovered) -> Iterator[Finding]:
    bad = found.unknown & declared.allowed.any(-1)
    if bool(bad.any()):
        count = int(bad.sum())
        yield Finding("row_nan", f"{count} of {bad.numel()} queries return NaN at scores of zero", {"rows": count})


def _empty_rows(found: Recovered, empty: Tensor) -> Iterator[Finding]:
    unknown, attends = found.unknown & empty, found.allowed.any(-1) & empty
    if bool(unknown.any()):
        yield Finding(
            "empty_row_nan",
            f"{int(unknown.sum())} of {int(empty.sum())} queries that may attend to nothing return NaN; 0 is expected",
            {"rows": int(unknown.sum()), "empty_rows": int(empty.sum())},
        )
    if bool(attends.any()):
        share = float(found.allowed[attends].float().mean())
        yield Finding(
            "empty_row_attends",
            f"{int(attends.sum())} of {int(empty.sum())} queries that may attend to nothing attend to "
            f"{100 * share:.0f}% of the keys; 0 is expected",
            {"rows": int(attends.sum()), "empty_rows": int(empty.sum()), "share": share},
        )


# --------------------------------------------------------------------------------------------- naming


@dataclass(frozen=True, eq=False)
class _Difference:
    """Two masks (batch, heads, q_len, kv_len), both False outside of `judged`."""

    declared: DeclaredMask
    wanted: Tensor
    seen: Tensor
    judged: Tensor

    @property
    def none(self) -> bool:
        return torch.equal(self.wanted, self.seen)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.wanted.shape[-2], self.wanted.shape[-1]

    def named(self) -> list[Finding]:
        for finding in (self._inverted(), self._transposed()):
            if finding is not None:
                return [finding]
        extra, missing = self.seen & ~self.wanted, self.wanted & ~self.seen
        let_through, unexplained = self._let_through(extra)
        if bool(missing.any()) and any(finding.code == "mask_differs" for finding in let_through):
            return [self._unnamed(extra, missing)]  # neither more nor less than declared: another mask
        held_back = self._held_back(missing)
        if held_back is None or bool(unexplained.any()):
            return [*let_through, *(held_back or []), self._unnamed(extra, missing)]
        return [*let_through, *held_back]

    def _unnamed(self, extra: Tensor, missing: Tensor) -> Finding:
        words = describe(self.seen | ~self.judged).words
        count = {"forbidden_attended": int(extra.sum()), "allowed_missing": int(missing.sum())}
        told = f"{count['forbidden_attended']} forbidden pairs attend, {count['allowed_missing']} allowed ones do not"
        return Finding("mask_differs", f"{told}; found: {words}", {**count, "found": words})

    # --------------------------------------------------------------------- mistakes that change the whole mask

    def _inverted(self) -> Finding | None:
        if not torch.equal(self.seen, ~self.wanted & self.judged) or not bool(self.seen.any()):
            return None
        return Finding("mask_inverted", "the pairs that may attend do not, and the others do: the mask is inverted")

    def _transposed(self) -> Finding | None:
        if self.lengths[0] != self.lengths[1] or not torch.equal(self.seen, self.declared.allowed.mT & self.judged):
            return None
        return Finding("mask_transposed", "queries and keys are exchanged in the mask")

    # --------------------------------------------------------------------------- pairs that should not attend

    def _let_through(self, extra: Tensor) -> tuple[list[Finding], Tensor]:
        """The rules that are broken, and the pairs that no broken rule explains.

        A rule is broken where a pair attends that it alone forbids.
        """
        rules = rules_of(self.declared.parts, *self.lengths)
        unexplained, findings = extra.clone(), list[Finding]()
        wrong = extra.flatten(2).any(-1)[:, :, None, None] & self.judged  # samples and heads that are wrong at all
        for rule in rules:
            others = torch.zeros_like(extra)
            for other in rules:
                others |= other.forbids if other is not rule else False
            alone = rule.forbids & ~others & wrong
            broken = extra & alone
            if bool(broken.any()):
                findings.append(rule.broken(broken, whole=torch.equal(broken, alone), where=self._heads(broken)))
                unexplained &= ~rule.forbids
        return findings, unexplained

    def _heads(self, pairs: Tensor) -> str:
        """Which heads it is about, unless it is all of them."""
        heads = [head for head, some in enumerate(pairs.flatten(2).any(-1).any(0)) if bool(some)]
        return "" if len(heads) == pairs.shape[1] else f" by head {', '.join(map(str, heads))}"

    # ---------------------------------------------------------------------------------- pairs that should

    def _held_back(self, missing: Tensor) -> list[Finding] | None:
        """Why allowed pairs do not attend, [] when all do, or None when it has no name."""
        if not bool(missing.any()):
            return []
        kept = self.wanted & self.seen
        if not bool(kept.any()):
            return [Finding("nothing_attended", "no query attends to any key that it may attend to")]
        for align in ("top_left", "bottom_right"):
            if (narrower := self._narrower(kept, align)) is not None:
                return narrower
        hidden = self.wanted.any(2, keepdim=True) & ~kept.any(2, keepdim=True)
        if torch.equal(kept, self.wanted & ~hidden):
            keys = sorted({int(key) for key in hidden.nonzero()[:, 3]})
            told = ", ".join(map(str, keys[:8])) + (" ..." if len(keys) > 8 else "")
            return [Finding("keys_hidden", f"no query attends to key {told}", {"keys": keys})]
        empty = (self.wanted.any(-1) & ~kept.any(-1)).sum()
        if int(empty) and torch.equal(kept, self.wanted & kept.any(-1, keepdim=True)):
            told = f"{int(empty)} queries attend to none of the keys that they may attend to"
            return [Finding("nothing_attended", told, {"rows": int(empty)})]
        return None

    def _narrower(self, kept: Tensor, align: Align) -> list[Finding] | None:
        """The bounds that explain what is missing, or None when bounds do not."""
        distance = _distances(*self.lengths, align).expand(kept.shape)
        before, after = -int(distance[kept].min()), int(distance[kept].max())
        if not torch.equal(kept, self.wanted & (distance >= -before) & (distance <= after)):
            return None
        wanted = distance[self.wanted]
        rules = {rule.kind: rule for rule in rules_of(self.declared.parts, *self.lengths)}
        findings: list[Finding] = []
        if after < int(wanted.max()):
            findings.append(_imposed_after(after, rules.get("after"), align, *self.lengths))
        if before < -int(wanted.min()):
            findings.append(_imposed_before(before, rules.get("before")))
        return findings


def _imposed_after(after: int, rule: Rule | None, align: Align, q_len: int, kv_len: int) -> Finding:
    if rule is not None:
        told = f"the window reaches {after} keys after the query, declared {rule.bound}"
        return Finding("window_right_differs", told, {"found": after, "declared": rule.bound})
    if after == 0:
        corner = "" if q_len == kv_len else f" (corner {align.replace('_', '-')})"
        return Finding("causal_imposed", f"later keys are not attended to{corner}, declared: no such bound")
    told = f"no query attends to keys more than {after} after it, declared: no such bound"
    return Finding("window_imposed", told, {"after": after})


def _imposed_before(before: int, rule: Rule | None) -> Finding:
    if rule is not None:
        told = f"the window reaches {before} keys before the query, declared {rule.bound}"
        return Finding("window_left_differs", told, {"found": before, "declared": rule.bound})
    told = f"no query attends to keys more than {before} before it, declared: no such bound"
    return Finding("window_imposed", told, {"before": before})


def _other_corner(mask: Mask | None, q_len: int, kv_len: int) -> Tensor | None:
    """The same mask with its bands in the other corner, or None where there is but one."""
    if mask is None or q_len == kv_len:
        return None
    parts = [_turned(part) for part in mask.conjuncts]
    if all(new is old for new, old in zip(parts, mask.conjuncts, strict=True)):
        return None
    met = parts[0].dense(q_len, kv_len)
    for part in parts[1:]:
        met = met & part.dense(q_len, kv_len)
    return met


def _turned(part: Mask) -> Mask:
    if isinstance(part, Causal):
        return Causal("top_left" if part.align == "bottom_right" else "bottom_right")
    if isinstance(part, SlidingWindow):
        align = "top_left" if part.align == "bottom_right" else "bottom_right"
        return SlidingWindow(part.before, part.after, align=align)
    return part


def _distances(q_len: int, kv_len: int, align: Align) -> Tensor:
    beside = torch.arange(q_len) + (kv_len - q_len if align == "bottom_right" else 0)
    return torch.arange(kv_len)[None] - beside[:, None]
