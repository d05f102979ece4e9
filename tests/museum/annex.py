"""More mistakes: what masks let by, heads that are mixed up, numbers that are added or dropped.

`cited` names a report of a mistake of the kind; what is made here is the plainest one of it, and not that very bug.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import dropout

from regard import positions
from regard.masks import Causal, Dense, Documents, Padding, SlidingWindow
from tests.museum.exhibits import Exhibit
from tests.museum.plain import causal, fused, not_before, softmax_attention


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT / math.sqrt(query.shape[-1])


def _causal_of(query: Tensor, key: Tensor) -> Tensor:
    return causal(query.shape[2], key.shape[2])


def _minus_a_hundred_thousand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = _scores(query, key)
    return scores.masked_fill(~_causal_of(query, key), -1e5).softmax(-1) @ value


def _turned_round(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return softmax_attention(query, key, value, ~mask)


def _repeated_as_a_whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    times = query.shape[1] // key.shape[1]
    return softmax_attention(query, key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1))


def _alibi_that_rewards(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    slopes = torch.tensor([2.0 ** (-2 * head) for head in range(1, 5)])
    back = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])[None]
    scores = _scores(query, key) + (slopes[:, None, None] * back).to(query)
    return scores.masked_fill(back < 0, -math.inf).softmax(-1) @ value


def _always_dropping(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return dropout(_scores(query, key).softmax(-1), 0.5, training=True) @ value


def _zero_is_a_window(query: Tensor, key: Tensor, value: Tensor, *, window: int = 0) -> Tensor:
    """A window of 0 means none. Taken for a width it leaves nothing: the lower bound stands above the causal one."""
    lengths = query.shape[2], key.shape[2]
    allowed = causal(*lengths) & not_before(*lengths, window - 1)
    weights = _scores(query, key).masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0.0)
    return weights @ value


def _off_by_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    lengths = query.shape[2], key.shape[2]
    return softmax_attention(query, key, value, causal(*lengths) & not_before(*lengths, 5))


def _padding_forgotten(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return fused(query, key, value)


def _capped_twice(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (torch.tanh(_scores(query, key) / 30.0) * 30.0).softmax(-1) @ value


def _square_forgotten(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The guide's step 2 as it is printed: divided by d_k."""
    return (query @ key.mT / query.shape[-1]).softmax(-1) @ value


def _unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT).softmax(-1) @ value


def _cosine(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key = (tensor / (tensor.norm(dim=-1, keepdim=True) + 1e-6) for tensor in (query, key))
    return (query @ key.mT / 0.1).softmax(-1) @ value


def _query_forgotten(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _scores(torch.zeros_like(query), key).softmax(-1) @ value


def _sink_forgotten(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return softmax_attention(query, key, value, _causal_of(query, key))


def _best_three(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = _scores(query, key)
    least = scores.topk(min(3, scores.shape[-1]), dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, -math.inf).softmax(-1) @ value


def _batch_as_length(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A sum over the wrong dimension: every sample gets a little of the first."""
    output = softmax_attention(query, key, value)
    return output + 0.01 * output[:1]


def _no_rotation(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return softmax_attention(query, key, value, _causal_of(query, key))


def _rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rope = positions.RoPE(query.shape[-1])
    turned = (rope.rotate(tensor, torch.arange(tensor.shape[2])) for tensor in (query, key))
    return softmax_attention(*turned, value, _causal_of(query, key))


def _half_of_it(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return 0.5 * softmax_attention(query, key, value, _causal_of(query, key))


def _gated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.tanh(softmax_attention(query, key, value))


def _tail_lost(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Blocks of four keys; the last one is left out when it is not whole."""
    whole = max(key.shape[2] // 8 * 8, 1)
    return softmax_attention(query, key[:, :, :whole], value[:, :, :whole])


def _rows_of_nothing_spread(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    low = torch.finfo(query.dtype).min
    return _scores(query, key).masked_fill(~mask, low).softmax(-1) @ value


ANNEX: Mapping[str, Exhibit] = {
    "finite infinity": Exhibit(
        "TransformerLensOrg/TransformerLens#385",
        "forbidden scores of -1e5: scores below attend to what they may not",
        lambda: _minus_a_hundred_thousand,
        {"mask": Causal()},
        frozenset({"finite_mask"}),
    ),
    "inverted": Exhibit(
        "rasbt/LLMs-from-scratch#1061, NVIDIA/TransformerEngine#614",
        "True means blocked here, and may attend there",
        lambda: _turned_round,
        {"mask": Causal() & SlidingWindow(4, 0)},
        frozenset({"mask_inverted"}),
        {"lengths": [(12, 12)]},
    ),
    "heads in turns": Exhibit(
        "huggingface/transformers#46860 (grouped heads in eager attention)",
        "key/value heads are repeated as a whole, and not each beside itself",
        lambda: _repeated_as_a_whole,
        {"enable_gqa": True},
        frozenset({"kv_heads_interleaved"}),
    ),
    "a reward for distance": Exhibit(
        "meta-pytorch/attention-gym PR #86",
        "ALiBi with the wrong sign",
        lambda: _alibi_that_rewards,
        {"mask": Causal(), "position": positions.ALiBi(4)},
        frozenset({"bias_differs"}),
    ),
    "dropout in evaluation": Exhibit(
        "pytorch/pytorch#124464",
        "dropout that is never turned off",
        lambda: _always_dropping,
        {},
        frozenset({"dropout_active"}),
    ),
    "a window of zero": Exhibit(
        "unslothai/unsloth PR #8253",
        "a window of 0 meant none, and was taken for a width",
        lambda: _zero_is_a_window,
        {"mask": Causal()},
        frozenset({"nothing_attended"}),
        {"asked": ()},
    ),
    "one key too many": Exhibit(
        "huggingface/transformers#29623",
        "a window of 4 with the token itself, or beside it",
        lambda: _off_by_one,
        {"mask": Causal() & SlidingWindow(4, 0)},
        frozenset({"window_left_differs"}),
        {"lengths": [(12, 12)]},
    ),
    "padding forgotten": Exhibit(
        "huggingface/transformers 5.23, an attention registered without its mask",
        "padded keys are attended to",
        lambda: _padding_forgotten,
        {"mask": Padding([12, 7])},
        frozenset({"padding_attended"}),
    ),
    "capped": Exhibit(
        "google/gemma_pytorch's softcap, where none is declared",
        "scores are capped",
        lambda: _capped_twice,
        {},
        frozenset({"softcap_imposed"}),
    ),
    "divided by d": Exhibit(
        "the guide, 1.1 step 2",
        "scores / d_k instead of scores / sqrt(d_k)",
        lambda: _square_forgotten,
        {},
        frozenset({"scale_twice"}),
    ),
    "unscaled": Exhibit("the guide, 4.2", "no scale", lambda: _unscaled, {}, frozenset({"scale_missing"})),
    "cosine": Exhibit(
        "QK-norm, where none is declared",
        "the length of a query has no effect",
        lambda: _cosine,
        {},
        frozenset({"scores_normalised"}),
    ),
    "deaf": Exhibit(
        "a projection that is zero",
        "the query has no effect",
        lambda: _query_forgotten,
        {},
        frozenset({"scores_ignore_query"}),
    ),
    "no sink": Exhibit(
        "a learned sink that a kernel does not take",
        "rows sum to one",
        lambda: _sink_forgotten,
        {"mask": Causal(), "sink": torch.tensor([0.0, 1.0, 0.5, 2.0])},
        frozenset({"sink_missing"}),
    ),
    "three best": Exhibit(
        "sparse attention, where none is declared",
        "only the three best keys attend",
        lambda: _best_three,
        {},
        frozenset({"mask_by_content"}),
    ),
    "samples meet": Exhibit(
        "unslothai/unsloth#9708 (a batch is not its samples)",
        "every sample hears of the first",
        lambda: _batch_as_length,
        {},
        frozenset({"batch_mixed"}),
    ),
    "no rotation": Exhibit(
        "RoPE left out by a fallback",
        "a key scores the same everywhere",
        lambda: _no_rotation,
        {"mask": Causal(), "position": positions.RoPE(16)},
        frozenset({"position_missing"}),
    ),
    "rotation": Exhibit(
        "RoPE applied twice, or where none is declared",
        "a key scores by its place",
        lambda: _rotated,
        {"mask": Causal()},
        frozenset({"position_imposed"}),
    ),
    "half of it": Exhibit(
        "a scale that landed on the output",
        "weights sum to a half",
        lambda: _half_of_it,
        {"mask": Causal()},
        frozenset({"rows_do_not_sum_to_one"}),
    ),
    "bent": Exhibit(
        "a nonlinearity on the output",
        "the output is not the weights times the values",
        lambda: _gated,
        {},
        frozenset({"not_weights_times_value"}),
    ),
    "a lost tail": Exhibit(
        "pytorch/pytorch#191937 (lengths that a block does not divide)",
        "the last keys, less than a block, are left out",
        lambda: _tail_lost,
        {},
        frozenset({"keys_hidden"}),
    ),
    "rows of nothing": Exhibit(
        "masks of finfo.min, transformers#31035",
        "a sample that is all padding attends to all of it",
        lambda: _rows_of_nothing_spread,
        {"mask": Padding([12, 0])},
        frozenset({"empty_row_attends"}),
    ),
    "any mask": Exhibit(
        "a mask that is no band",
        "every pair attends",
        lambda: _padding_forgotten,
        {"mask": Dense((torch.arange(144) % 5 != 0).view(12, 12))},
        frozenset({"mask_ignored"}),
    ),
    "documents and the future": Exhibit(
        "packing without a mask of its own",
        "documents cross, and the future is seen",
        lambda: _padding_forgotten,
        {"mask": Causal() & Documents([5, 7])},
        frozenset({"documents_cross", "causal_missing"}),
    ),
}
