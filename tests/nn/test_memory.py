"""Memory: each mechanism beside its definition, and the one protocol of their states (FAULTS F60)."""

import math
import weakref

import pytest
import torch

import regard
from regard.masks import Causal, Keys, Padding, PrefixLM, SlidingWindow
from regard.nn import (
    KNNMemory,
    MemoryAttention,
    MemoryState,
    MultiHeadAttention,
    RecurrentMemory,
    TransformerEncoder,
    TransformerXLMemory,
)

WIDTH = 8
MAKERS = {
    "memory": lambda **o: MemoryAttention(WIDTH, 2, slots=3, **o),
    "transformer_xl": lambda **o: TransformerXLMemory(WIDTH, 2, memory_length=5, **o),
    "knn": lambda **o: KNNMemory(WIDTH, 2, memory_length=6, top_k=2, **o),
    "recurrent": lambda **o: RecurrentMemory(WIDTH, 2, memory_tokens=3, **o),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def seeded(make, dtype=torch.float64):
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name or "logit" in name:  # zeros hide mistakes
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    return module


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def read(module, segments, state=None, masks=None):
    """The outputs of all segments, one after the other, and the last state."""
    outputs = []
    for place, segment in enumerate(segments):
        output, state = module(segment, state=state, mask=None if masks is None else masks[place])
        outputs.append(output)
    return torch.cat(outputs, 1), state


def assert_alike(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_same_gradients(module, found, expected, *inputs):
    wanted = [*inputs, *module.parameters()]
    grad = drawn(*found.shape, seed=9)
    mine = torch.autograd.grad(found, wanted, grad, allow_unused=True)
    theirs = torch.autograd.grad(expected, wanted, grad, allow_unused=True)
    for tensor, *pair in zip(wanted, mine, theirs, strict=True):
        one, other = (torch.zeros_like(tensor) if each is None else each for each in pair)
        assert_alike(one, other, 1e-8)


def by_hand(heads, x, context, keep=None):
    """Multi-head attention of x to a context, with the rows of the stacked weight."""
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    query, key, value = (
        (s @ w.T + b).unflatten(-1, (heads.num_heads, -1)).transpose(1, 2)
        for s, w, b in zip((x, context, context), weights, biases, strict=True)
    )
    scores = query @ key.mT / math.sqrt(heads.head_dim)
    if keep is not None:
        scores = scores.masked_fill(~keep, -torch.inf)
    return heads.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def lower(n):
    return torch.ones(n, n, dtype=torch.bool).tril()


# ------------------------------------------------------------------------------------------- the guide's memory


@pytest.mark.parametrize("learned", [False, True])
def test_memory_is_the_guides_update(learned):
    module = seeded(lambda: MemoryAttention(WIDTH, 2, slots=3, decay=0.7, learned_decay=learned, causal=True))
    decay = torch.sigmoid(module.decay_logit)[:, None] if learned else 0.7
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 1, 6)]
    found, state = read(module, segments)
    memory, outputs = torch.zeros(2, 3, WIDTH, dtype=torch.float64), []
    for number, x in enumerate(segments):
        context = by_hand(module.local, x, x, lower(x.shape[1]))
        outputs.append(context + (by_hand(module.recall, x, memory) if number else 0.0))
        new = by_hand(module.write, module.slots.expand(2, -1, -1), context)
        memory = decay * memory + (1 - decay) * new
    expected = torch.cat(outputs, 1)
    assert_alike(found, expected)
    assert_alike(state["memory"], memory)
    assert state.seen.tolist() == [11, 11]
    assert_same_gradients(module, found, expected, *segments)


def test_the_first_segment_is_plain_attention():
    module = seeded(MAKERS["memory"])
    x = drawn(2, 5, WIDTH)
    assert_alike(module(x)[0], by_hand(module.local, x, x))


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_at_its_ends(decay):
    module = seeded(lambda: MemoryAttention(WIDTH, 2, slots=3, decay=decay))
    _, first = module(drawn(1, 4, WIDTH))
    _, second = module(drawn(1, 4, WIDTH, seed=2), state=first)
    if decay == 1.0:
        assert not second["memory"].any()
    else:
        assert_alike(second["memory"], module(drawn(1, 4, WIDTH, seed=2))[1]["memory"])


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_F60_decay_beyond_0_to_1(decay):
    with pytest.raises(regard.ArgumentError, match=r"decay: expected a number from 0 to 1, got .*grows without bound"):
        MemoryAttention(WIDTH, decay=decay)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_F60_learned_decay_stays_between(decay):
    with pytest.raises(regard.ArgumentError, match=r"decay: expected a number between 0 and 1, neither of them, got"):
        MemoryAttention(WIDTH, decay=decay, learned_decay=True)
    module = MemoryAttention(WIDTH, decay=0.9, learned_decay=True)
    torch.testing.assert_close(module.decay, torch.full((16,), 0.9))
    with torch.no_grad():
        module.decay_logit.fill_(50.0)
    assert (module.decay <= 1).all()


# ------------------------------------------------------------------------------------------------ Transformer-XL


def transformer_xl_by_hand(module, x, keep):
    """The paper's section 3.3, every pair on its own; keys of earlier tokens that are cached carry no gradient here."""
    heads, position = module.projections, module.position
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    query, key, value = (
        (x @ w.T + b).unflatten(-1, (heads.num_heads, -1)).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
    )
    n, width = x.shape[1], x.shape[2]
    scores = []
    for i in range(n):
        row = []
        for j in range(n):
            angle = (i - j) * 10000.0 ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
            relative = (position.projection @ torch.cat([angle.sin(), angle.cos()])).view(heads.num_heads, -1)
            content = (query[:, :, i] + position.key_bias) * key[:, :, j]
            distance = (query[:, :, i] + position.distance_query_bias) * relative
            row.append((content + distance).sum(-1))
        scores.append(torch.stack(row, -1))
    scores = torch.stack(scores, 2) / math.sqrt(heads.head_dim)
    weights = scores.masked_fill(~keep, -torch.inf).softmax(-1)
    return heads.out_proj((weights @ value).transpose(1, 2).flatten(2))


def test_transformer_xl_is_its_formula():
    module = seeded(MAKERS["transformer_xl"])
    x = drawn(2, 7, WIDTH).requires_grad_()
    found, expected = module(x)[0], transformer_xl_by_hand(module, x, lower(7))
    assert_alike(found, expected)
    assert_same_gradients(module, found, expected, x)


def test_segments_are_the_whole_text_while_the_memory_reaches():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=9))
    x = drawn(2, 12, WIDTH)
    whole, _ = module(x)
    for sizes in ([12], [4, 5, 3], [9, 3], [1] * 9 + [3], [4, 0, 8]):
        found, state = read(module, x.split(sizes, 1))
        assert_alike(found, whole)
        assert_alike(state["hidden"], x[:, -9:])


def test_segments_see_what_the_memory_holds_and_no_more():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=2))
    x = drawn(2, 9, WIDTH)
    keep = lower(9)
    for start in (3, 6):
        keep[start : start + 3, : start - 2] = False
    assert_alike(read(module, x.split(3, 1))[0], transformer_xl_by_hand(module, x, keep))


def test_same_length_is_the_same_wherever_the_text_is_cut():
    module = seeded(lambda: TransformerXLMemory(WIDTH, 2, memory_length=3, same_length=True))
    x = drawn(2, 13, WIDTH)
    expected = transformer_xl_by_hand(module, x, SlidingWindow(3, 0).dense(13, 13))
    for sizes in ([13], [4, 9], [1] * 13, [2, 7, 0, 4]):
        assert_alike(read(module, x.split(sizes, 1))[0], expected)


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_no_gradient_reaches_an_earlier_segment(name):
    module = seeded(MAKERS[name])
    first, second = drawn(1, 3, WIDTH).requires_grad_(), drawn(1, 3, WIDTH, seed=2).requires_grad_()
    _, state = module(first)
    assert not any(tensor.requires_grad for tensor in state.tensors.values())
    module(second, state=state)[0].sum().backward()
    assert first.grad is None
    assert second.grad.any()


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_padding_on_the_right_is_not_remembered(name):
    module = seeded(MAKERS[name])
    x, y = drawn(3, 4, WIDTH), drawn(3, 3, WIDTH, seed=2)
    lengths = [4, 2, 0]
    found, state = read(module, [x, y], masks=[Padding(lengths), None])
    assert state.seen.tolist() == [7, 5, 3]
    for row, length in enumerate(lengths):
        alone, kept = read(module, [x[row : row + 1, :length], y[row : row + 1]])
        assert_alike(found[row : row + 1, 4:], alone[:, length:])
        for tensor in kept.tensors:
            assert_alike(state[tensor][row : row + 1], kept[tensor])


@pytest.mark.parametrize("name", ["transformer_xl", "knn"])
def test_padding_elsewhere_is_refused(name):
    module, x = MAKERS[name](), torch.randn(2, 3, WIDTH)
    for mask in (Padding([1, 3], side="left"), Keys(torch.tensor([[True, False, True]] * 2))):
        with pytest.raises(
            regard.UnsupportedError, match=r"padding would stand between .* Put the padding on the right"
        ):
            module(x, mask=mask)


@EACH
def test_masks_of_pairs_are_refused(make):
    with pytest.raises(regard.UnsupportedError, match=r"honours padding, and no other mask"):
        make()(torch.randn(2, 3, WIDTH), mask=Causal())


# ----------------------------------------------------------------------------------------- nearest neighbours


def knn_by_hand(module, segments, top_k, *, causal):
    """Every remembered key is scored in a loop over the queries, and the best are softmaxed."""
    heads = module.projections
    weights, biases = heads.in_proj_weight.chunk(3), heads.in_proj_bias.chunk(3)
    old_keys = old_values = None
    outputs = []
    for x in segments:
        query, key, value = (
            (x @ w.T + b).unflatten(-1, (2, -1)).transpose(1, 2) for w, b in zip(weights, biases, strict=True)
        )
        factor = heads.head_dim**-0.5
        if module.log_scale is not None:
            query, key = query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)
            factor = module.log_scale.exp()[:, None, None]
        scores = factor * query @ key.mT
        if causal:
            scores = scores.masked_fill(~lower(x.shape[1]), -torch.inf)
        output = scores.softmax(-1) @ value
        if old_keys is not None:
            scores = factor * query @ old_keys.mT
            order = scores.argsort(-1, descending=True)[..., top_k:]
            scores = scores.scatter(-1, order, -torch.inf)
            gate = torch.sigmoid(module.gate_logit)[:, None, None]
            output = gate * (scores.softmax(-1) @ old_values) + (1 - gate) * output
        outputs.append(heads.out_proj(output.transpose(1, 2).flatten(2)))
        key, value = key.detach(), value.detach()
        old_keys = key if old_keys is None else torch.cat([old_keys, key], 2)
        old_values = value if old_values is None else torch.cat([old_values, value], 2)
        old_keys, old_values = (old[:, :, -module.memory_length :] for old in (old_keys, old_values))
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("piece", [2048, 4])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_knn_is_its_formula(top_k, normalize, piece):
    module = seeded(lambda: KNNMemory(WIDTH, 2, memory_length=7, top_k=top_k, normalize=normalize, causal=True))
    module.PIECE = piece
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 5, 2, 9)]
    found, state = read(module, segments)
    expected = knn_by_hand(module, segments, top_k, causal=True)
    assert_alike(found, expected)
    assert_same_gradients(module, found, expected, *segments)
    assert state["keys"].shape == (2, 2, 7, 4)


def test_knn_gate_is_told():
    module = KNNMemory(WIDTH, 2)
    assert torch.equal(module.gate, torch.full((2,), 0.5))


# ---------------------------------------------------------------------------------------------- memory tokens


@pytest.mark.parametrize("causal", [False, True])
def test_recurrent_memory_is_its_definition(causal):
    module = seeded(lambda: RecurrentMemory(WIDTH, 2, memory_tokens=3, causal=causal))
    segments = [drawn(2, n, WIDTH, seed=n).requires_grad_() for n in (4, 1, 6)]
    found, state = read(module, segments)
    memory, outputs = module.memory.expand(2, -1, -1), []
    for x in segments:
        n = x.shape[1]
        tokens = torch.cat([memory, x, memory] if causal else [memory, x], 1)
        keep = PrefixLM(3).dense(n + 6, n + 6) if causal else None
        output = by_hand(module.backbone, tokens, tokens, keep)
        outputs.append(output[:, 3 : 3 + n])
        memory = output[:, -3:] if causal else output[:, :3]
    expected = torch.cat(outputs, 1)
    assert_alike(found, expected)
    assert_alike(state["memory"], memory)
    assert_same_gradients(module, found, expected, *segments)


def test_recurrent_memory_takes_any_backbone():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiHeadAttention(WIDTH, 2)

        def forward(self, tokens, *, mask=None):
            return tokens + self.attention(tokens, mask=mask)

    module = seeded(lambda: RecurrentMemory(WIDTH, backbone=Shifted(), memory_tokens=2))
    x = drawn(2, 4, WIDTH)
    tokens = torch.cat([module.memory.expand(2, -1, -1), x], 1)
    assert_alike(module(x)[0], module.backbone(tokens)[:, 2:])
    with pytest.raises(
        regard.ArgumentError, match=r"backbone: expected one that is not causal itself, got .* Say causal"
    ):
        RecurrentMemory(WIDTH, backbone=MultiHeadAttention(WIDTH, 2, causal=True))


def test_in_a_deep_backbone_the_memory_in_front_is_read_both_ways():
    module = seeded(
        lambda: RecurrentMemory(WIDTH, backbone=TransformerEncoder(WIDTH, 2, 2), memory_tokens=3, causal=True)
    )
    x = drawn(2, 4, WIDTH)
    memory = module.memory.expand(2, -1, -1)
    keep = lower(10)
    keep[:3, :3] = True
    output = module.backbone(torch.cat([memory, x, memory], 1), mask=keep)
    found, state = module(x)
    assert_alike(found, output[:, 3:7])
    assert_alike(state["memory"], output[:, 7:])


@pytest.mark.parametrize("name", ["memory", "recurrent"])
def test_gradients_go_back_through_segments_until_detach(name):
    module = seeded(MAKERS[name])
    first = drawn(1, 3, WIDTH).requires_grad_()
    _, state = module(first)
    module(drawn(1, 3, WIDTH, seed=2), state=state)[0].sum().backward()
    assert first.grad.any()


@pytest.mark.parametrize("name", ["memory", "recurrent"])
def test_a_dialogue_without_a_real_token_keeps_its_memory(name):
    module = seeded(MAKERS[name])
    _, state = module(drawn(2, 3, WIDTH))
    x = drawn(2, 3, WIDTH, seed=2)
    _, after = module(x, state=state, mask=Padding([2, 0]))
    assert torch.equal(after["memory"][1], state["memory"][1])
    assert not torch.equal(after["memory"][0], state["memory"][0])
    assert after.seen.tolist() == [5, 3]
    _, nothing = module(x[:, :0], state=state)
    assert torch.equal(nothing["memory"], state["memory"])


# ------------------------------------------------------------------------------------------------ the protocol


def text(seed, batch=3, length=4):
    return drawn(batch, length, WIDTH, seed=seed, dtype=torch.float32)


@EACH
def test_F60_a_row_that_was_reset_is_a_new_dialogue_bit_for_bit(make):
    module = seeded(make, torch.float32)
    _, state = read(module, [text(1), text(2)])
    kept, _ = module(text(3), state=state)
    state.reset([1])
    found, after = read(module, [text(3), text(4)], state)
    fresh, new = read(module, [text(3), text(4)], module.create_state(3))
    assert torch.equal(found[1], fresh[1])
    assert torch.equal(found[[0, 2], :4], kept[[0, 2]])
    assert not torch.equal(found[0], fresh[0])
    assert all(torch.equal(after[name][1], new[name][1]) for name in after.tensors)


@EACH
def test_F60_reset_of_all_rows_and_of_one_that_broke(make):
    module = seeded(make, torch.float32)
    broken = text(1)
    broken[1] = torch.nan
    _, state = module(broken)
    state.reset([1])
    found, _ = module(text(2), state=state)
    assert torch.equal(found[1], module(text(2))[0][1])
    state.reset()
    assert torch.equal(module(text(2), state=state)[0], module(text(2))[0])


@EACH
def test_F60_dialogues_do_not_see_each_other(make):
    module = seeded(make, torch.float32)
    other = text(1)
    other[0] = text(7)[0]
    first, _ = read(module, [text(1), text(2)])
    second, _ = read(module, [other, text(2)])
    assert torch.equal(first[1:], second[1:])
    assert not torch.equal(first[0, 4:], second[0, 4:])


@EACH
def test_F60_detach_lets_go_of_the_graph(make):
    module = seeded(make, torch.float32)
    x = text(1).requires_grad_()
    output, state = module(x)
    state.detach()
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in state.tensors.values())
    gone = weakref.ref(x)
    output.sum().backward()
    del output, x
    assert gone() is None
    module(text(2), state=state)[0].sum().backward()  # does not go back through the first, whose graph was freed


@EACH
def test_F60_another_batch_is_refused_with_a_word_on_what_to_do(make):
    module = make()
    _, state = module(text(1))
    with pytest.raises(regard.ShapeError, match=r"state batch: expected 2 dialogues, as x has, got 3\. .*create_state"):
        module(text(1, batch=2), state=state)


@EACH
def test_a_call_leaves_the_state_it_was_given(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    before = state.state_dict()
    once, twice = module(text(2), state=state)[0], module(text(2), state=state)[0]
    assert torch.equal(once, twice)
    assert all(torch.equal(before[name], state[name]) for name in before)


@EACH
def test_beams_go_on_from_the_rows_they_came_from(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    rows = [2, 2, 0, 1, 0]
    expected = torch.stack([module(text(1)[[row] * 3])[1].tensors[name][0] for row in rows for name in ["seen"]])
    state.reorder(torch.tensor(rows))
    assert state.batch == 5
    assert torch.equal(state.seen, expected)
    found, _ = module(text(2, batch=5), state=state)
    wanted, _ = read(module, [text(1)[rows], text(2, batch=5)])
    torch.testing.assert_close(found, wanted[:, 4:], rtol=1e-5, atol=1e-6)


@EACH
def test_a_state_is_saved_and_loaded(make):
    module = seeded(make, torch.float32)
    _, state = module(text(1))
    saved = state.state_dict()
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in saved.values())
    again = module.create_state(3)
    again.load_state_dict(saved)
    assert torch.equal(module(text(2), state=again)[0], module(text(2), state=state)[0])
    with pytest.raises(
        regard.ArgumentError, match=r"state of \w+: expected .* got .* Create the state with the module"
    ):
        module.create_state(2).load_state_dict(saved)
    saved.popitem()
    with pytest.raises(regard.ArgumentError, match=r"Create the state with the module"):
        again.load_state_dict(saved)


@EACH
def test_states_of_others_are_refused(make):
    module = make()
    for stranger in (MemoryState("Another", {"seen": torch.zeros(3)}), {"memory": torch.zeros(3)}):
        with pytest.raises(
            regard.ArgumentError, match=r"state: expected a state of \w+, got .* Each layer has its own"
        ):
            module(text(1), state=stranger)
    with pytest.raises(regard.ShapeError, match=r"state: expected .*float32.* got .*float64.* create one anew\."):
        module(text(1), state=module.create_state(3, dtype=torch.float64))
    with pytest.raises(regard.ArgumentError, match=r"rows: expected whole numbers from 0 to 2, got \[3\]"):
        module.create_state(3).reset([3])


def test_sizes_that_make_no_memory():
    for make in (
        lambda: MemoryAttention(WIDTH, slots=0),
        lambda: TransformerXLMemory(WIDTH, memory_length=0),
        lambda: KNNMemory(WIDTH, top_k=0),
        lambda: RecurrentMemory(WIDTH, memory_tokens=0),
    ):
        with pytest.raises(regard.ArgumentError, match=r"expected a whole number of at least 1, got 0\."):
            make()
