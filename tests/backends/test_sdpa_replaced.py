"""`backend="sdpa"` means torch's own attention: it is refused while `regard.activate()` has another in its place."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.backends import _library
from tests.integrations.calls import Counted, sized

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))
REASON = r"regard.activate\(\) has put the native core in its place; call regard.deactivate\(\) first"


@pytest.fixture(autouse=True)
def off_afterwards():
    yield
    regard.deactivate()


@pytest.mark.parametrize("return_lse", [False, True])
def test_sdpa_by_name_is_refused_while_active(return_lse):
    calls = Counted()
    with regard.activate(), pytest.raises(regard.UnsupportedError, match=REASON):
        regard.attention(*sized()(), backend="sdpa", return_lse=return_lse)
    assert calls.forward == 0


def test_sdpa_is_itself_again_afterwards():
    inputs = sized()()
    before = regard.attention(*inputs, backend="sdpa")
    with regard.activate():
        with regard.activate():
            pass
        assert regard.dispatch(*inputs, backend="sdpa").chosen is None
    calls = Counted()
    assert torch.equal(regard.attention(*inputs, backend="sdpa"), before)
    assert calls.forward == 0


def test_auto_goes_past_it(monkeypatch):
    inputs = sized()()
    exact = regard.attention(*inputs, backend="eager")
    with regard.activate():
        assert regard.dispatch(*inputs).chosen == "native"
        torch.testing.assert_close(regard.attention(*inputs), exact)
        monkeypatch.setattr("regard.backends.native.Native.support", lambda *_: regard.backends.Support(False, "no"))
        assert regard.dispatch(*inputs).chosen == "eager"


def test_elsewhere_than_on_cpu_torchs_own_is_still_there():
    inputs = [tensor.to("meta") for tensor in sized()()]
    with regard.activate():
        (answer,) = (choice for choice in regard.dispatch(*inputs).choices if choice.backend == "sdpa")
    assert answer.status != "refused"
