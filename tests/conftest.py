"""What every test gets: a seeded torch, one Hypothesis profile, and the model fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Test processes share the cores: a thread that waits must not spin. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch

if (Path(__file__).parent / "models" / "fixtures.py").exists():
    pytest_plugins = ["tests.models.fixtures"]

settings.register_profile(
    "fixed",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whatever ran before."""
    torch.manual_seed(0)
