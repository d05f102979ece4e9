"""One audit at work: a target at several lengths, dtypes and ways of calling, each compared with what is declared."""

from __future__ import annotations

import copy
from collections.abc import Collection, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, UnsupportedError
from regard._shapes import Sizes, shape_of
from regard.masks import Mask
from regard.trust.audit.compare_mask import DeclaredMask, compare_masks
from regard.trust.audit.declared import Declared, varied
from regard.trust.audit.findings import Finding
from regard.trust.audit.recover import Probe, Recovered, recover
from regard.trust.question import Question
from regard.trust.target import Target

TOLERANCE, HALF_TOLERANCE = 0.02, 0.05
"""How far a weight, which is at most 1, may be from the declared one before it is called another: in float32 (some
compute in bfloat16 inside), and in half precision. Being exact is for `regard.verify` to judge."""


_OF_EMPTY_ROWS = {"empty_row_attends", "empty_row_nan"}


@dataclass(frozen=True)
class Setting:
    """One way to call the target.

    gradients: its inputs want gradients.
    training: a module is put into this mode; None leaves it as it is.
    repeats: how often each weight is read: more than once where some are dropped.
    """

    q_len: int
    kv_len: int
    dtype: torch.dtype = torch.float32
    gradients: bool = False
    training: bool | None = None
    note: str = ""
    repeats: int = 1

    @property
    def label(self) -> str:
        """As findings name it: "12 x 12, float32"."""
        parts = [f"{self.q_len} x {self.kv_len}", str(self.dtype).removeprefix("torch.")]
        parts += ["gradients wanted"] if self.gradients else []
        parts += [] if self.training is None else ["training" if self.training else "eval"]
        return ", ".join([*parts, *([self.note] if self.note else [])])


@dataclass(frozen=True, eq=False)
class View:
    """What was seen in one setting.

    expected: bool (batch, heads, q_len, kv_len), the pairs that should attend; None when nothing is declared for it.
    """

    setting: Setting
    found: Recovered
    expected: Tensor | None
    findings: tuple[Finding, ...] = ()


@dataclass(eq=False)
class Examination:
    """The target, what it is asked, and what has been seen so far.

    asked: the options that are handed to the target; others that are declared it should do by itself.
    """

    target: Target
    declared: Declared
    asked: Collection[str]
    sizes: Sizes
    device: torch.device | str
    seed: int
    module: nn.Module | None = None
    repeats: int = 1
    views: list[View] = field(default_factory=list[View])
    limits: list[str] = field(default_factory=list[str])

    # ---------------------------------------------------------------------------------------------- calling

    def probe(self, setting: Setting, declared: Declared | None = None) -> Probe:
        """The target in one setting, asked for what is declared."""
        options = _on((self.declared if declared is None else declared).options(self.asked), self.device)
        sizes = replace(self.sizes, q_len=setting.q_len, kv_len=setting.kv_len)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with self._mode(setting):
                fresh = (tensor.detach().clone().requires_grad_(setting.gradients) for tensor in (query, key, value))
                question = Question(next(fresh), next(fresh), next(fresh), options)
                output = self.target.call(question)
            wanted = (sizes.batch, sizes.heads, sizes.q_len, sizes.value_dim)
            if tuple(output.shape) != wanted:
                raise ArgumentError(
                    f"what {self.target.name} returns",
                    expected=f"(batch, heads, q_len, value_dim) = {wanted}",
                    got=shape_of(output),
                    do='Pass layout="bnhd" when heads come after the length, or adapter=.',
                )
            return output

        return Probe(attend, sizes, setting.dtype, self.device, self.seed, max(self.repeats, setting.repeats))

    @contextmanager
    def _mode(self, setting: Setting) -> Generator[None]:
        before = None if self.module is None else self.module.training
        if self.module is not None and setting.training is not None:
            self.module.train(setting.training)
        try:
            with nullcontext() if setting.gradients else torch.no_grad():
                yield
        finally:
            if self.module is not None and before is not None:
                self.module.train(before)

    # ---------------------------------------------------------------------------------------------- looking

    def first_look(self, setting: Setting) -> View:
        """The main view. Raises UnsupportedError when the target does not answer at all."""
        try:
            return self._look(setting, self.declared)
        except (ArgumentError, UnsupportedError):
            raise
        except Exception as error:
            raise UnsupportedError(
                {self.target.name: f"{type(error).__name__}: {_reason(error)[:300]}"},
                do="Say sizes it takes (batch, heads, kv_heads, head_dim, lengths), or adapter=.",
            ) from error

    def look(self, setting: Setting, mask: Mask | None = None) -> View | None:
        """Another view, or None (and a limit that says so) where the target does not answer."""
        declared = self.declared if mask is None else replace(self.declared, mask=mask)
        try:
            return self._look(setting, declared)
        except Exception as error:  # whatever a callable raises in a setting, it was not examined there
            self.limits.append(f"not examined at {setting.label}: {_reason(error)[:160]}")
            return None

    def _look(self, setting: Setting, declared: Declared) -> View:
        probe = self.probe(setting, declared)
        found = recover(probe)
        if not declared.fits(setting.q_len, setting.kv_len):
            view = View(setting, found, None)
        else:
            sizes = probe.sizes
            expected = declared.allowed(sizes.batch, sizes.heads, setting.q_len, setting.kv_len)
            findings = compare_masks(DeclaredMask(declared.mask, expected), found)
            view = View(setting, found, expected, tuple(replace(one, where=(setting.label,)) for one in findings))
        self.views.append(view)
        return view

    def look_at_other_mask(self, main: View) -> View | None:
        """Ask for other numbers of the same mask at the same lengths: is it still the first one that is used?"""
        other = varied(self.declared.mask)
        fits = other is not None and replace(self.declared, mask=other).fits(main.setting.q_len, main.setting.kv_len)
        if other is None or not fits or "mask" not in self.asked:
            return None
        view = self.look(replace(main.setting, note=f"asked for {other!r}"), mask=other)
        telling = () if view is None else [one for one in view.findings if one.code not in _OF_EMPTY_ROWS]
        if view is None or view.expected is None or not telling:
            return view
        right_before = not main.findings and not torch.equal(main.found.allowed, view.expected)
        if right_before and torch.equal(view.found.allowed, main.found.allowed):
            told = f"asked for {other!r} after {self.declared.mask!r}, it answers with the mask of the earlier call"
            view = replace(view, findings=(Finding("setting_remembered", told, where=(view.setting.label,)),))
            self.views[-1] = view
        return view

    # ------------------------------------------------------------------------------------------ comparing numbers

    def weights_of(self, setting: Setting) -> Finding | None:
        """Weights at random scores beside the reference, for what no other look explains."""
        if not self.declared.fits(setting.q_len, setting.kv_len):
            return None
        probe = self.probe(setting)
        query, key = probe.normal(draw=20)
        found = probe.weights(query, key)
        options = self.declared.options(("mask", "position", "bias", "scale", "softcap", "sink", "enable_gqa"))
        expected = Question(query.cpu(), key.cpu(), probe.values().cpu(), options).truth().weights
        known = found.isfinite()
        off = float((found - expected).abs()[known].max()) if bool(known.any()) else 0.0
        if off <= (TOLERANCE if setting.dtype == torch.float32 else HALF_TOLERANCE):
            return None
        told = f"weights at random scores are off by up to {off:.3g}"
        return Finding("weights_differ", told, {"difference": off}, (setting.label,))

    def answer(self, setting: Setting) -> Tensor:
        """The output of one fixed call, to be asked for again."""
        probe = self.probe(setting)
        query, key = probe.normal(draw=30)
        generator = torch.Generator().manual_seed(31)
        value = torch.randn(probe.values().shape, generator=generator, dtype=torch.float64)
        return probe.output(query, key, value.to(probe.values()))


def _on(options: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The options with their tensors where the target computes; what is declared stays where it is."""
    moved = {name: options[name].to(device) for name in ("bias", "sink") if name in options}
    if "position" in options and torch.device(device).type != "cpu":
        moved["position"] = copy.deepcopy(options["position"]).to(device)
    return {**options, **moved}


def _reason(error: Exception) -> str:
    told = "; ".join(error.reasons.values()) if isinstance(error, UnsupportedError) else str(error)
    return " ".join(told.split()) or type(error).__name__
