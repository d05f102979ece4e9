"""`regard.activate` and its handles: who is on, who is off, and what else of torch is switched with it."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import attention as torch_attention

import regard
from regard.backends import _library
from regard.integrations import torch_sdpa
from tests.integrations.calls import kernels

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    before = kernels(), torch.compiler.config.cache_key_tag, torch.backends.mha.get_fastpath_enabled()
    yield
    regard.deactivate()
    assert (kernels(), torch.compiler.config.cache_key_tag, torch.backends.mha.get_fastpath_enabled()) == before


# -------------------------------------------------------------------------------------------- handles


def test_the_last_handle_restores_torch():
    first, second = regard.activate(), regard.activate()
    first.remove()
    assert torch_sdpa.is_active()
    second.remove()
    assert not torch_sdpa.is_active()


def test_a_handle_releases_once():
    first, second = regard.activate(), regard.activate()
    first.remove()
    first.remove()
    assert torch_sdpa.is_active()
    second.remove()


@pytest.mark.parametrize("closed", ["by-itself", "by-deactivate"])
def test_a_handle_that_is_closed_leaves_the_next_activation_alone(closed):
    stale = regard.activate()
    if closed == "by-itself":
        stale.remove()
    else:
        regard.deactivate()
    regard.activate()
    stale.remove()
    assert torch_sdpa.is_active()


def test_deactivate_closes_all():
    with regard.activate():
        regard.activate()
        regard.deactivate()
        assert not torch_sdpa.is_active()
    assert not torch_sdpa.is_active()


def test_a_handle_entered_again_activates_again():
    handle = regard.activate()
    for _ in range(2):
        with handle as entered:
            assert entered is handle
            assert torch_sdpa.is_active()
        assert not torch_sdpa.is_active()


def test_a_handle_entered_inside_itself_stays_on_to_the_end():
    handle = regard.activate()
    with handle:
        with handle:
            pass
        assert torch_sdpa.is_active()
    assert not torch_sdpa.is_active()


def test_a_step_that_fails_undoes_those_before_it(monkeypatch):
    def fail():
        raise KeyError("no tag")

    own = kernels()
    with monkeypatch.context() as patched:
        patched.setattr(torch_sdpa, "CacheTag", fail)
        with pytest.raises(KeyError, match="no tag"):
            regard.activate()
    assert kernels() == own
    assert not torch_sdpa.is_active()
    with regard.activate():
        assert torch_sdpa.is_active()


def test_threads_that_open_and_close_beside_an_open_handle():
    def switch():
        for _ in range(10):
            with regard.activate():
                assert torch_sdpa.is_active()

    with regard.activate():
        threads = [threading.Thread(target=switch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch_sdpa.is_active()
    assert not torch_sdpa.is_active()


# ------------------------------------------------------------------------------------- torch's own list


def test_deactivate_takes_it_out_of_torchs_list():
    torch_attention.activate_flash_attention_impl("regard")
    regard.deactivate()
    assert torch_attention.current_flash_attention_impl() is None


def test_deactivate_leaves_another_implementation_in_torchs_list():
    class Handle:
        def remove(self):
            pass

    torch_attention.register_flash_attention_impl("another", register_fn=Handle)
    try:
        torch_attention.activate_flash_attention_impl("another")
        regard.activate()
        regard.deactivate()
        assert torch_attention.current_flash_attention_impl() == "another"
    finally:
        torch_attention.restore_flash_attention_impl()
        torch_attention._registry._FLASH_ATTENTION_IMPLS.pop("another")


def test_what_torchs_list_restores_is_its_own_opening():
    regard.activate()
    torch_attention.activate_flash_attention_impl("regard")
    torch_attention.restore_flash_attention_impl()
    assert torch_sdpa.is_active()
    assert torch_attention.current_flash_attention_impl() is None


# ------------------------------------------------------------------------------- the tag of torch's caches


def tag_in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.compiler.config.cache_key_tag))
    thread.start()
    thread.join()
    return found[0]


def test_every_thread_compiles_under_a_tag_of_its_own_while_active():
    before = torch.compiler.config.cache_key_tag, tag_in_another_thread()
    with regard.activate():
        assert f"regard {regard.__version__}" in torch.compiler.config.cache_key_tag
        assert f"regard {regard.__version__}" in tag_in_another_thread()
    assert (torch.compiler.config.cache_key_tag, tag_in_another_thread()) == before


def test_a_tag_of_the_users_is_kept_and_comes_back():
    with torch.compiler.config.patch(cache_key_tag="mine"):
        with regard.activate():
            assert torch.compiler.config.cache_key_tag == f"mine+regard {regard.__version__}"
        assert torch.compiler.config.cache_key_tag == "mine"


def test_a_tag_that_was_set_meanwhile_stays():
    with torch.compiler.config.patch(cache_key_tag="mine"):
        with regard.activate():
            torch.compiler.config.cache_key_tag = "another"
        assert torch.compiler.config.cache_key_tag == "another"
