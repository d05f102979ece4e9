"""What every training run can be told: one flat, typed list, to which a recipe's own `Config` adds its keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "float32", "bfloat16"]
Sharding = Literal["none", "full"]
OptimizerName = Literal["adamw", "muon"]


class TrainingConfig(BaseModel):
    """Settings of `regard.training.train`. Unknown keys are refused.

    Args:
        seed: of the weights, the order of examples and dropout.
        steps: how many times the weights are changed.
        accumulate: parts that a batch is cut into, one after another; less memory, the same gradient.
        optimizer: "adamw", or "muon" for hidden matrices beside AdamW for the rest; see `regard.training.optimizers`.
        learning_rate: the highest, reached after warmup_steps; see `regard.training.schedule`.
        warmup_steps: of a linear rise from 0.
        final_rate: the last learning rate, as a part of the highest.
        weight_decay: for matrices only.
        beta1, beta2: of AdamW.
        clip_norm: gradients are scaled down to this norm; 0 is off.
        label_smoothing: for recipes whose loss is a cross entropy.
        average_decay: of the moving average of weights, which is what is evaluated and kept; 0 is off.
        dropout_start, dropout_end: the rate goes linearly from one to the other over the run; both or neither. The
            guide (3.3) lets it fall, and it may rise. Without, the rate is the model's own.
        precision: of products: "bfloat16" is autocast, "auto" takes it where the machine computes in it.
        sharding: "full" spreads weights, gradients and optimizer over the processes of torchrun (FSDP2).
        threads: of this process while it trains and is tested; torch's own choice unless given.
        log_every, evaluate_every, checkpoint_every: in steps. Evaluation and a checkpoint also come at the end.
        checkpoint_minutes: a checkpoint comes at the latest after so many minutes; 0 is off.
        keep: how many checkpoints stay.
        health_every: steps between looks at the attention of the model; 0 is off.
        patience: evaluations without a better metric after which training ends; 0 is off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(1, ge=0, lt=2**32)
    steps: int = Field(1000, ge=1)
    accumulate: int = Field(1, ge=1)
    optimizer: OptimizerName = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    final_rate: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    clip_norm: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    average_decay: float = Field(0.0, ge=0, lt=1)
    dropout_start: float | None = Field(None, ge=0, lt=1)
    dropout_end: float | None = Field(None, ge=0, lt=1)
    precision: Precision = "auto"
    sharding: Sharding = "none"
    threads: int | None = Field(None, ge=1)
    log_every: int = Field(10, ge=1)
    evaluate_every: int = Field(500, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    checkpoint_minutes: float = Field(5.0, ge=0)
    keep: int = Field(2, ge=2)
    health_every: int = Field(0, ge=0)
    patience: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _dropout_has_two_ends(self) -> Self:
        if (self.dropout_start is None) != (self.dropout_end is None):
            raise ValueError("dropout_start and dropout_end: expected both or neither")
        return self

    def decisive(self) -> dict[str, object]:
        """The keys on which the numbers of a run depend: all but how often it is watched and saved."""
        return self.model_dump(mode="json", exclude=_WATCHING)

    @classmethod
    def completed(cls, saved: Mapping[str, Any]) -> dict[str, Any]:
        """A saved configuration, and for keys younger than it what was done before, where that is not the default."""
        return dict(saved)

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """What decides the numbers and was otherwise in a saved configuration."""
        fields, before = type(self).model_fields, self.completed(saved)
        return [
            f"{key}: {before.get(key, fields[key].default)!r} -> {value!r}"
            for key, value in self.decisive().items()
            if before.get(key, fields[key].default) != value
        ]

    def digest(self) -> str:
        """sha256 of `decisive`, which a checkpoint is compared by."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()


_WATCHING = {
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "health_every",
    "patience",
    "threads",
}
