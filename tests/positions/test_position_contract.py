"""What every position promises: its terms, gradients, dtypes, copies, compilation."""

import copy
import inspect

import pytest
import torch
from dense_attention import dense_attention, filled, pair_distances, unit_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from regard import ArgumentError, ShapeError, positions
from regard.positions import (
    ALiBi,
    ContinuousBias,
    DynamicNTKScaling,
    LongRoPEScaling,
    Position,
    RoPE,
    Shaw,
    T5Bias,
    TransformerXL,
    YaRNScaling,
)

HEADS, HEAD_DIM = 2, 4
MAKERS = {
    "alibi-causal": lambda align=None: ALiBi(HEADS, align=align),
    "alibi-symmetric": lambda align=None: ALiBi(HEADS, form="symmetric", learnable=True, align=align),
    "alibi-asymmetric": lambda align=None: ALiBi(HEADS, form="asymmetric", learnable=True, align=align),
    "t5": lambda align=None: T5Bias(HEADS, buckets=8, max_distance=6, align=align),
    "t5-decoder": lambda align=None: T5Bias(HEADS, buckets=4, max_distance=6, bidirectional=False, align=align),
    "shaw": lambda align=None: Shaw(HEAD_DIM, 2, align=align),
    "shaw-keys": lambda align=None: Shaw(HEAD_DIM, 2, values=False, align=align),
    "shaw-values": lambda align=None: Shaw(HEAD_DIM, 2, keys=False, align=align),
    "transformer-xl": lambda align=None: TransformerXL(HEADS, HEAD_DIM, align=align),
    "continuous": lambda align=None: ContinuousBias(HEADS, hidden=6, align=align),
    "rope": lambda align=None: RoPE(HEAD_DIM, align=align),
    "rope-interleaved-part": lambda align=None: RoPE(2, style="interleaved", align=align),
    "rope-yarn": lambda align=None: RoPE(HEAD_DIM, scaling=YaRNScaling(2.0, 4), align=align),
    "rope-dynamic": lambda align=None: RoPE(HEAD_DIM, scaling=DynamicNTKScaling(2.0, 4), align=align),
    "rope-long": lambda align=None: RoPE(
        HEAD_DIM, scaling=LongRoPEScaling((1.0, 2.0), (3.0, 4.0), 4, factor=2.0), align=align
    ),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def inputs(q_len=4, kv_len=5, dtype=torch.float64):
    sizes = (1, HEADS, q_len, HEAD_DIM), (1, HEADS, kv_len, HEAD_DIM), (1, HEADS, kv_len, HEAD_DIM)
    return tuple(unit_normal(*size, seed=seed, dtype=dtype) for seed, size in enumerate(sizes))


def test_every_public_position_is_here():
    public = {getattr(positions, name) for name in positions.__all__}
    classes = {c for c in public if inspect.isclass(c) and issubclass(c, Position)} - {Position}
    assert {type(make()) for make in MAKERS.values()} == classes


def test_public_names_are_sorted():
    assert positions.__all__ == sorted(positions.__all__)


@every
def test_terms_say_which_methods_work(make):
    position, distance, query = make(), torch.arange(-4, 5), inputs(dtype=torch.float32)[0]
    answers = {
        "bias": lambda: position.distance_bias(distance),
        "content": lambda: position.distance_scores(query, distance),
        "value": lambda: position.distance_values(distance),
    }
    sizes = {"bias": (HEADS, 9), "content": (1, HEADS, 4, 9), "value": (9, HEAD_DIM)}
    for term, answer in answers.items():
        if term in position.terms:
            assert answer().shape == sizes[term]
        else:
            with pytest.raises(TypeError, match=f"{type(position).__name__} has no {term} term"):
                answer()
    turned = position.rotate(query, torch.arange(4))
    assert ("rotation" in position.terms) == (not torch.equal(turned, query))
    assert turned.shape == query.shape
    assert position.terms
    if "content" not in position.terms:
        assert position.content_query(query) is query


@every
def test_gradients_reach_every_table_and_every_input(make):
    position = filled(make("bottom_right"))
    states = tuple(x.requires_grad_() for x in inputs(3, 4))
    checked = (*states, *position.parameters())
    # gradcheck moves the parameters themselves, so the function need not take them.
    assert torch.autograd.gradcheck(lambda *_: dense_attention(*states, position, scale=0.5), checked)


@every
@pytest.mark.parametrize("align", ["top_left", "bottom_right"])
@settings(derandomize=True, max_examples=6, deadline=None)
@given(q_len=st.integers(1, 9), kv_len=st.integers(1, 9))
def test_any_lengths_and_a_row_alone_is_the_row_among_others(make, align, q_len, kv_len):
    """With "bottom_right" the last query alone must see what it sees among the others: cached decoding."""
    position = filled(make(align))
    if isinstance(position, RoPE) and position.scaling is not None and position.scaling.depends_on_length:
        position.align = "bottom_right"
    query, key, value = inputs(q_len, kv_len)
    together = dense_attention(query, key, value, position)
    assert together.shape == query.shape
    assert torch.isfinite(together).all()
    if position.align == "bottom_right":
        alone = dense_attention(query[:, :, -1:], key, value, position)
    else:
        alone, together = dense_attention(query[:, :, :1], key, value, position), together[:, :, :1]
    torch.testing.assert_close(alone, together[:, :, -1:], atol=1e-12, rtol=1e-12)


@every
def test_query_positions(make):
    assert make("top_left").query_positions(3, 5).tolist() == [0, 1, 2]
    assert make("bottom_right").query_positions(3, 5).tolist() == [2, 3, 4]
    assert make("bottom_right").query_positions(3, 2).tolist() == [-1, 0, 1]
    assert make().query_positions(2, 2).tolist() == [0, 1]


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cast", [True, False], ids=["module-cast", "module-float32"])
def test_dtypes(make, dtype, cast):
    position = make().to(dtype) if cast else make()
    own = dtype if cast else torch.float32
    query, distance = inputs(dtype=dtype)[0], torch.arange(-4, 5)
    assert position.rotate(query, torch.arange(4)).dtype == dtype
    assert position.content_query(query).dtype == dtype
    if "bias" in position.terms:
        assert position.distance_bias(distance).dtype == own
    if "content" in position.terms:
        assert position.distance_scores(query, distance).dtype == torch.promote_types(dtype, own)
    if "value" in position.terms:
        assert position.distance_values(distance).dtype == own


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_near_float64(make, dtype):
    position = filled(make("bottom_right"))
    exact = dense_attention(*(x.to(dtype).double() for x in inputs()), position.to(dtype).double())
    rounded = dense_attention(*inputs(dtype=dtype), position.to(dtype))
    torch.testing.assert_close(rounded.double(), exact, atol=16 * torch.finfo(dtype).eps, rtol=0)


@every
def test_copies_and_saved_states(make):
    position = filled(make("bottom_right"))
    fresh = make("bottom_right").double()
    fresh.load_state_dict(position.state_dict(), strict=True)
    expected = dense_attention(*inputs(), position)
    assert torch.equal(dense_attention(*inputs(), copy.deepcopy(position)), expected)
    assert torch.equal(dense_attention(*inputs(), fresh), expected)


@every
def test_compiles_as_one_graph(make):
    position, distance = filled(make()), torch.arange(-4, 5)

    def every_term(query, places):
        turned = position.rotate(query, places)
        answers = [turned, position.content_query(turned)]
        if "bias" in position.terms:
            answers.append(position.distance_bias(distance))
        if "content" in position.terms:
            answers.append(position.distance_scores(turned, distance))
        if "value" in position.terms:
            answers.append(position.distance_values(distance))
        return answers

    query, places = inputs()[0], torch.arange(4)
    torch.compiler.reset()
    compiled = torch.compile(every_term, fullgraph=True, backend="aot_eager")(query, places)
    for own, expected in zip(compiled, every_term(query, places), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-12)


@every
def test_check_refuses_lengths_without_align(make):
    with pytest.raises(ShapeError) as error:
        make().check(heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, q_len=3, kv_len=5)
    assert str(error.value) == (
        f"{type(make()).__name__} with q_len != kv_len: expected align='top_left' or align='bottom_right', "
        "got no align, with q_len 3 and kv_len 5. "
        "Say align='bottom_right' when the queries are the last ones (a KV cache), else 'top_left'."
    )
    make("bottom_right").check(heads=HEADS, head_dim=HEAD_DIM, value_dim=HEAD_DIM, q_len=3, kv_len=5)


@every
def test_check_refuses_another_number_of_heads(make):
    position = make()
    sizes = {"heads": 3, "head_dim": HEAD_DIM, "value_dim": HEAD_DIM, "q_len": 5, "kv_len": 5}
    if position.heads is None:
        position.check(**sizes)
        return
    with pytest.raises(ShapeError) as error:
        position.check(**sizes)
    assert str(error.value) == (
        f"{type(position).__name__} heads: expected 3, as query has, got 2. "
        "Build the position with the number of query heads."
    )


@every
def test_check_refuses_an_unknown_align(make):
    with pytest.raises(ArgumentError, match="align: expected one of None, 'top_left', 'bottom_right', got 'right'"):
        make("right")


@every
def test_repr_is_one_line_with_align(make):
    printed = repr(make("top_left"))
    assert printed.startswith(f"{type(make()).__name__}(")
    assert printed.endswith("align='top_left')")
    assert "\n" not in printed


def test_a_position_must_say_its_terms():
    with pytest.raises(TypeError, match="terms"):
        type("Nameless", (Position,), {})()


def test_pairs_beside_one_another_have_distance_zero():
    for align in ("top_left", "bottom_right"):
        distance = pair_distances(ALiBi(1, align=align), 3, 5)
        corner = distance[0, 0] if align == "top_left" else distance[-1, -1]
        assert corner.item() == 0
