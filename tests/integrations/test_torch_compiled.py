"""`regard.activate` under torch.compile and torch.export: sizes that are symbols, and what torch keeps on disk."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere in the field
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.nn.attention import SDPBackend, sdpa_kernel

import regard
from regard.backends import _library
from tests.integrations.calls import BATCH, HEADS, WIDTH, Counted, sized

pytestmark = pytest.mark.skipif(_library.why_absent() is not None, reason=str(_library.why_absent()))
INDUCTOR_WARNING = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"


@pytest.fixture(autouse=True)
def off_afterwards():
    torch._dynamo.reset()
    yield
    regard.deactivate()
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------ symbolic sizes


def causal_and_padding(q_len, kv_len):
    """As Hugging Face makes it for texts that are padded on the left."""
    rows, columns = torch.arange(q_len)[:, None], torch.arange(kv_len)
    padded = torch.arange(BATCH)[:, None, None, None]
    return (columns <= rows + kv_len - q_len) & (columns >= padded)


MASKS = {
    "bool-2d": lambda q_len, kv_len: torch.arange(kv_len) <= torch.arange(q_len)[:, None],
    "bool-of-keys": lambda _, kv_len: torch.arange(kv_len).expand(BATCH, 1, 1, kv_len) != 1,
    "float-of-samples": lambda q_len, kv_len: torch.linspace(-2.0, 2.0, BATCH * q_len * kv_len).view(
        BATCH, 1, q_len, kv_len
    ),
    "float-of-heads": lambda q_len, kv_len: torch.linspace(-2.0, 2.0, HEADS * q_len * kv_len).view(
        HEADS, q_len, kv_len
    ),
    "causal-and-padding": causal_and_padding,
}


def outcome(function, query, key, value, mask):
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = function(*leaves, mask)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("name", MASKS)
def test_lengths_that_are_symbols(name, dynamic, kv_heads):
    grouped = kv_heads != HEADS

    def attend(query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=grouped)

    with regard.activate():
        compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for q_len in (5, 6, 9):
            inputs, mask = sized(q_len, q_len + 2, kv_heads=kv_heads)(), MASKS[name](q_len, q_len + 2)
            calls = Counted()
            found = outcome(compiled, *inputs, mask)
            assert (calls.forward, calls.backward) == (1, 1)
            torch.testing.assert_close(found, outcome(attend, *inputs, mask))


def test_a_mask_that_is_made_inside_the_graph():
    def attend(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, causal_and_padding(query.shape[2], key.shape[2]))

    with regard.activate():
        compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
        for q_len in (5, 6, 9):
            inputs = sized(q_len, q_len + 2)()
            torch.testing.assert_close(compiled(*inputs), attend(*inputs))


@pytest.mark.parametrize("masked", [False, True])
def test_a_length_that_is_known_only_when_it_runs(masked):
    def attend(query, key, value, length):
        kept = length.item()
        torch._check(kept >= 2)
        torch._check(kept <= key.shape[2])
        key, value = key[:, :, :kept], value[:, :, :kept]
        mask = torch.arange(kept) <= torch.arange(query.shape[2])[:, None] if masked else None
        return F.scaled_dot_product_attention(query, key, value, mask)

    inputs = sized()()
    with regard.activate(), torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        for length in (5, 7):
            torch.testing.assert_close(compiled(*inputs, torch.tensor(length)), attend(*inputs, torch.tensor(length)))


class Attention(nn.Module):
    def forward(self, query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, mask)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_export_with_dynamic_lengths():
    rows, columns = torch.export.Dim("rows", min=2, max=64), torch.export.Dim("columns", min=2, max=64)
    sizes = {"query": {2: rows}, "key": {2: columns}, "value": {2: columns}, "mask": {0: rows, 1: columns}}
    with regard.activate():
        given = (*sized(5, 7)(), MASKS["bool-2d"](5, 7))
        program = torch.export.export(Attention(), given, dynamic_shapes=sizes).run_decompositions()
        for q_len, kv_len in ((5, 7), (9, 4)):
            given = (*sized(q_len, kv_len)(), MASKS["bool-2d"](q_len, kv_len))
            torch.testing.assert_close(program.module()(*given), Attention()(*given))


def test_a_plain_call_is_in_the_graph_what_it_is_for_torch():
    def attend(query, key, value):
        return F.scaled_dot_product_attention(query, key, value)

    inputs = sized()()
    own = torch.fx.experimental.proxy_tensor.make_fx(attend)(*inputs)
    with regard.activate():
        found = torch.fx.experimental.proxy_tensor.make_fx(attend)(*inputs)
    assert found.code == own.code


def test_a_kernel_chosen_inside_the_graph():
    def attend(query, key, value):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value)

    inputs = sized()()
    calls = Counted()
    with regard.activate():
        found = torch.compile(attend, backend="aot_eager")(*inputs)
    assert calls.forward == 0
    torch.testing.assert_close(found, attend(*inputs))


# ---------------------------------------------------------------------------------------- what is kept


def with_a_mask(query, key, value, mask):
    return F.scaled_dot_product_attention(query.sin(), key, value, mask).cos()


@pytest.mark.filterwarnings(INDUCTOR_WARNING)
def test_code_compiled_while_active_is_not_taken_from_the_cache_afterwards():
    given = (*sized()(), torch.ones(9, 9, dtype=torch.bool).tril())
    with fresh_cache():
        calls = Counted()
        with regard.activate():
            expected = torch.compile(with_a_mask, fullgraph=True)(*given)
        assert calls.forward == 1
        torch._dynamo.reset()
        calls = Counted()
        found = torch.compile(with_a_mask, fullgraph=True)(*given)
        assert calls.forward == 0
        torch.testing.assert_close(found, expected)
        torch._dynamo.reset()
        counters.clear()
        with regard.activate():
            torch.compile(with_a_mask, fullgraph=True)(*given)
        assert calls.forward == 1
        assert counters["aot_autograd"]["autograd_cache_hit"] == 1, "what was compiled while active is kept for then"


IN_A_PROCESS = f"""
import sys, torch
import torch.nn.functional as F
if sys.argv[1] == "active":
    import regard
    regard.activate()
torch.manual_seed(0)
given = [torch.randn({BATCH}, {HEADS}, 9, {WIDTH}) for _ in range(3)]
attend = lambda query, key, value: F.scaled_dot_product_attention(query.sin(), key, value, torch.ones(9, 9).tril() > 0)
print(float(torch.compile(attend)(*given).sum()))
"""


def test_processes_that_share_a_cache(tmp_path):
    def computed(state):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IN_A_PROCESS, state],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return float(done.stdout)

    first = computed("active")
    for state in ("plain", "active"):
        assert math.isclose(computed(state), first, abs_tol=1e-4)
