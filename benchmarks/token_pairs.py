"""Token mixers beside the layers of torch, transformers and others, with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.module_pairs import Line, Pair, Work, bars
from benchmarks.module_peers import Mapped, PublicS4D, package
from benchmarks.problems import Direction
from benchmarks.sides import Side, Sizes, normal
from regard import nn as mechanisms


def lines() -> list[Line]:
    """Every line of token mixers."""
    hugging_face = "transformers"
    return [
        Line("MultiHeadAttention", "MultiHeadAttention", "torch", _multihead, bars(2, 2), work=_of_attention),
        Line(
            "MultiHeadAttention weights asked",
            "MultiHeadAttention",
            "torch, need_weights",
            _weights_asked,
            bars(),
            work=_of_attention,
        ),
        Line("Longformer", "LongformerAttention", hugging_face, _longformer, bars(7, 8), work=_of_window),
        Line("BigBird", "BigBirdAttention", hugging_face, _bigbird),
        Line("Linformer", "LinformerAttention", "linformer", _linformer, bars(2.5, 2.5), work=_of_slots),
        Line("Nystrom", "NystromAttention", hugging_face, _nystrom),
        Line("Performer", "PerformerAttention", "performer-pytorch", _performer, bars(4, 4), work=_of_features),
        Line("Performer causal", "PerformerAttention", "performer-pytorch", _performer_causal, bars(8, 8)),
        Line("Performer layer", "PerformerAttention", "performer-pytorch", _performer_layer),
        *_performer_errors(),
        Line("S4D", "S4D", "public S4D", _s4d, bars(10, 10)),
        Line("Mamba", "SelectiveStateSpace", hugging_face, _mamba),
    ]


def _of_attention(sizes: Sizes) -> Work:
    n, d = sizes.length, sizes.width
    return Work(maps=8 * n * d * d, attention=4 * n * n * d)


def _of_window(sizes: Sizes) -> Work:
    """One global token, and no last map."""
    n, d, window = sizes.length, sizes.width, sizes.window
    pairs = n * (2 * window + 1) - window * (window + 1) + 2 * n
    return Work(maps=6 * n * d * d, attention=4 * pairs * d)


def _of_slots(sizes: Sizes) -> Work:
    """Query and output of all tokens, key and value of the slots alone."""
    n, d, slots = sizes.length, sizes.width, sizes.slots
    return Work(maps=4 * n * d * d + 4 * n * slots * d + 4 * slots * d * d, attention=4 * n * slots * d)


def _of_features(sizes: Sizes) -> Work:
    """Features of query and key, their sums with the values, and what the queries read of those."""
    return Work(maps=8 * sizes.length * _features(sizes) * sizes.width)


def _tokens(sizes: Sizes, length: int | None = None) -> tuple[Tensor]:
    return (normal(1, sizes.length if length is None else length, sizes.width),)


def _multihead(sizes: Sizes, _direction: Direction, *, need_weights: bool = False) -> Pair:
    theirs = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
    ours = mechanisms.MultiHeadAttention.from_torch(theirs)

    def call(module: Any, x: Tensor) -> Any:
        return module(x, x, x, need_weights=need_weights)

    return Pair(Side(ours, _tokens(sizes)), Side(theirs, _tokens(sizes), call))


def _weights_asked(sizes: Sizes, direction: Direction) -> Pair:
    """torch's default also gives the mean of the weights over the heads, which ours does not compute."""
    return _multihead(sizes, direction, need_weights=True)


def _longformer(sizes: Sizes, _direction: Direction) -> Pair:
    """Window and one global token. Theirs has no last map, so ours has none either."""
    theirs = package("transformers.models.longformer.modeling_longformer")
    config = theirs.LongformerConfig(
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads,
        attention_window=[2 * sizes.window],
        attention_probs_dropout_prob=0.0,
    )
    layer = theirs.LongformerSelfAttention(config, 0)
    # Their mask is 10000 at global tokens and 0 at the others; the model takes from it what the layer is told.
    told = torch.zeros(1, sizes.length)
    told[0, 0] = 10000.0

    def call(module: Any, x: Tensor) -> Any:
        return module(x, told.to(x.dtype), told < 0, told > 0, is_global_attn=True)

    ours = mechanisms.LongformerAttention.from_transformers(layer)
    return Pair(Side(ours, _tokens(sizes), _first_is_global), Side(layer, _tokens(sizes), call))


def _first_is_global(module: nn.Module, x: Tensor) -> Any:
    return module(x, global_tokens=1)


def _bigbird(sizes: Sizes, _direction: Direction) -> Pair:
    """Their random blocks are given, where ours has them too: drawn, they count some blocks twice."""
    theirs = package("transformers.models.big_bird.modeling_big_bird")
    drawn, blocks = 3, sizes.length // sizes.block
    config = theirs.BigBirdConfig(
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads,
        block_size=sizes.block,
        num_random_blocks=drawn,
        max_position_embeddings=sizes.length,
    )
    layer = theirs.BigBirdBlockSparseAttention(config, seed=0)
    tables = torch.stack([_random_blocks(blocks, drawn, head) for head in range(sizes.heads)])
    given = [table[1:-1].numpy() for table in tables]
    for name in ("_bigbird_block_rand_mask", "_bigbird_block_rand_mask_with_head"):
        # One call for each head, or one for all of them.
        setattr(layer, name, _Given(given, with_head=name.endswith("head")))
    masks = theirs.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, sizes.length), sizes.block)

    def call(module: Any, x: Tensor) -> Any:
        blocked, band, rows, columns = (mask.to(x.dtype) for mask in masks)
        return module(x, band, rows, columns, blocked, blocked)

    ours = mechanisms.BigBirdAttention.from_transformers(layer, tables)
    return Pair(Side(ours, _tokens(sizes)), Side(layer, _tokens(sizes), call))


def _random_blocks(blocks: int, drawn: int, head: int) -> Tensor:
    """(blocks, drawn): for each block other ones that are neither global nor in its window."""
    table = torch.zeros(blocks, drawn, dtype=torch.long)
    for row in range(1, blocks - 1):
        others = [column for column in range(1, blocks - 1) if abs(column - row) > 1]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(blocks * head + row))
        table[row] = torch.tensor(others)[order[:drawn]]
    return table


class _Given:
    """Stands for their drawing of random blocks. A class, since a copy of the layer has to find it again."""

    def __init__(self, tables: list[Any], *, with_head: bool) -> None:
        self.tables, self.with_head, self.asked = tables, with_head, 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        if self.with_head:
            return self.tables
        self.asked += 1
        return self.tables[(self.asked - 1) % len(self.tables)]


def _linformer(sizes: Sizes, _direction: Direction) -> Pair:
    theirs = package("linformer.linformer").LinformerSelfAttention(
        sizes.width, sizes.length, k=sizes.slots, heads=sizes.heads
    )
    ours = mechanisms.LinformerAttention(
        sizes.width, sizes.heads, max_length=sizes.length, projected_length=sizes.slots
    )
    with torch.no_grad():
        ours.in_proj_weight.copy_(torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight]))
        ours.key_projection.copy_(theirs.proj_k)
        ours.get_parameter("value_projection").copy_(theirs.proj_v)
        ours.out_proj.load_state_dict(theirs.to_out.state_dict())
    return Pair(Side(ours, _tokens(sizes)), Side(theirs, _tokens(sizes)))


_CONVOLUTION = 33  # of the paper


def _nystrom(sizes: Sizes, _direction: Direction) -> Pair:
    """Their pseudo-inverse begins from each matrix's own norm, as ours does; theirs is given a last map."""
    theirs = package("transformers.models.nystromformer.modeling_nystromformer")
    landmarks = sizes.block
    config = theirs.NystromformerConfig(
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads,
        num_landmarks=landmarks,
        segment_means_seq_len=sizes.length,
        conv_kernel_size=_CONVOLUTION,
        attention_probs_dropout_prob=0.0,
    )
    layer = theirs.NystromformerSelfAttention(config)
    layer.init_option = "exact"
    whole = Mapped(layer, sizes.width)
    ours = mechanisms.NystromAttention(sizes.width, sizes.heads, num_landmarks=landmarks, conv_size=_CONVOLUTION)
    ours.copy_maps([layer.query, layer.key, layer.value], whole.output)
    ours.get_submodule("conv").load_state_dict(layer.conv.state_dict())
    # Their identity matrix is of the default dtype, so it is ours that is computed in float64.
    return Pair(Side(ours, _tokens(sizes)), Side(whole, _tokens(sizes)), exact=Side(ours, _tokens(sizes)))


def _mix(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return module.mix(query, key, value)


class Softmax(nn.Module):
    """What random features estimate, over heads (batch, heads, length, head_dim)."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v."""
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)


def _performer_pair(sizes: Sizes, length: int, *, causal: bool, spread: float = 0.25, shrink: bool = False) -> Pair:
    """Without projections: over heads. `spread` is the standard deviation of queries and keys."""
    fast = package("performer_pytorch.performer_pytorch").FastAttention
    features = _features(sizes)
    shape = (1, sizes.heads, length, sizes.head_dim)
    heads = (normal(*shape, scale=spread), normal(*shape, seed=1, scale=spread), normal(*shape, seed=2))
    ours = mechanisms.PerformerAttention(
        sizes.width, sizes.heads, num_features=features, causal=causal, shrink=shrink, bias=False
    )
    ours.requires_grad_(requires_grad=False)  # over heads nothing is projected
    return Pair(
        Side(ours, heads, _mix),
        Side(fast(sizes.head_dim, features, causal=causal), heads),
        exact=Side(Softmax(causal=causal), heads),
        approximate=True,
    )


def _features(sizes: Sizes) -> int:
    """Their usual number, d log(d), made even."""
    width = sizes.head_dim
    return int(width * torch.tensor(float(width)).log()) // 2 * 2


def _performer(sizes: Sizes, _direction: Direction) -> Pair:
    return _performer_pair(sizes, sizes.length, causal=False)


def _performer_causal(sizes: Sizes, _direction: Direction) -> Pair:
    return _performer_pair(sizes, sizes.causal_length, causal=True)


def _performer_errors() -> list[Line]:
    """How far each is from softmax attention, by how long queries and keys are. Nothing is timed."""
    found: list[Line] = []
    for causal in (False, True):
        for spread, shrink in ((0.25, False), (0.5, True), (1.0, True)):

            def pair(
                sizes: Sizes, _: Direction, *, causal: bool = causal, spread: float = spread, shrink: bool = shrink
            ) -> Pair:
                length = sizes.causal_length if causal else sizes.length
                return _performer_pair(sizes, length, causal=causal, spread=spread, shrink=shrink)

            order = " causal" if causal else ""
            name = f"Performer{order} error at q, k of {spread:g}{', shrunk' if shrink else ''}"
            found.append(Line(name, "PerformerAttention", "performer-pytorch", pair, {}, error_needed=1.0))
    return found


def _performer_layer(sizes: Sizes, _direction: Direction) -> Pair:
    """With the projections, which are the same; the random directions are not."""
    features = _features(sizes)
    theirs = package("performer_pytorch.performer_pytorch").SelfAttention(
        sizes.width, heads=sizes.heads, dim_head=sizes.head_dim, nb_features=features
    )
    ours = mechanisms.PerformerAttention(sizes.width, sizes.heads, num_features=features)
    exact = mechanisms.MultiHeadAttention(sizes.width, sizes.heads)
    with torch.no_grad():
        for each in (ours, exact):
            each.get_parameter("in_proj_weight").copy_(
                torch.cat([theirs.to_q.weight, theirs.to_k.weight, theirs.to_v.weight])
            )
            each.get_submodule("out_proj").load_state_dict(theirs.to_out.state_dict())
    inputs = _tokens(sizes)
    return Pair(Side(ours, inputs), Side(theirs, inputs), exact=Side(exact, inputs), approximate=True)


def _s4d(sizes: Sizes, _direction: Direction) -> Pair:
    """Theirs has the channels before the length; it is given them so, and compared turned."""
    theirs = PublicS4D(sizes.width)
    ours = mechanisms.S4D.from_state_spaces(theirs.state_dict())
    (x,) = _tokens(sizes)
    return Pair(
        Side(ours, (x,)), Side(theirs, (x.transpose(1, 2).contiguous(),), compared=lambda found: found.transpose(1, 2))
    )


def _mamba(sizes: Sizes, direction: Direction) -> Pair:
    """Their layer without CUDA; its backward takes seconds for a few hundred tokens."""
    mamba = package("transformers.models.mamba.modeling_mamba")
    config = package("transformers").MambaConfig(hidden_size=sizes.width, num_hidden_layers=1)
    theirs = mamba.MambaMixer(config, layer_idx=0)
    length = sizes.scan_length if direction == "forward" else sizes.scan_length_trained
    inputs = _tokens(sizes, length)
    ours = mechanisms.SelectiveStateSpace.from_transformers(theirs)
    # Parts of theirs are computed in float32 whatever its weights are, so it is ours that is computed in float64.
    return Pair(Side(ours, inputs), Side(theirs, inputs), exact=Side(ours, inputs))
