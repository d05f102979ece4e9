"""Which of the two ways observation computes: the native core, or the torch code that defines what it means."""

from __future__ import annotations

import pytest

from regard.backends import _library, _native_observe


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(_native_observe, "serves", lambda _: False)
    elif _library.why_absent() is not None:
        pytest.skip("this installation has no native core")
    return request.param
