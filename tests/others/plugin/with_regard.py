"""A pytest plugin for the tests of others: who computes attention meanwhile is said by WITH_REGARD.

"no" is plain torch, "active" is `regard.activate()`, and "wrong" a kernel of torch's name that gives 3 % too much: what
fails with it are the tests that look at numbers of attention at all. Every test begins with the same random numbers.

It stands in a folder of its own because the folder it is imported from must not hold a package `tests`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from typing import Any

import pytest
import torch

WHO = os.environ.get("WITH_REGARD", "no")
TOO_MUCH = 1.03
_kept: list[Any] = []


def pytest_configure() -> None:
    """Before anything is collected: some tests ask at import what torch can do."""
    if WHO == "active":
        import regard

        _kept.append(regard.activate())
    elif WHO == "wrong":
        library: Any = torch.library.Library("aten", "IMPL")  # pyright: ignore[reportPrivateImportUsage]
        library.impl("_scaled_dot_product_flash_attention_for_cpu", _wrong, "CPU", allow_override=True)
        _kept.append(library)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test that draws without a seed draws the same whoever computes."""
    random.seed(0)
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """A test that ends with another attention than it began with would say nothing of those after it."""
    try:
        result = yield
    finally:
        left_active = _is_active_again()
    if not left_active:
        pytest.fail("regard was active before this test and is not after it", pytrace=False)
    return result


def _is_active_again() -> bool:
    """Whether it was as it should be; afterwards it is."""
    if WHO != "active":
        return True
    from regard import activate
    from regard.integrations.torch_sdpa import is_active

    if is_active():
        return True
    _kept.append(activate())
    return False


def _wrong(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    output, _ = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    lse = query.new_zeros(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
    return (output * TOO_MUCH).transpose(1, 2).contiguous().transpose(1, 2), lse.transpose(1, 2)
