"""Attention level by level: sentence, paragraph, document. The guide's 4.1.

Yang et al. 2016, "Hierarchical Attention Networks for Document Classification", https://aclanthology.org/N16-1174,
section 2.2. At each level the items h_i of a group are encoded and joined to one vector s, which is an item above:

    u_i = tanh(W h_i + b),   a = softmax over the group of u_i . u_w,   s = sum of a_i h_i

In the form "han" the encoder is nothing, or the paper's two-way GRU; in the form "transformer" it is self-attention
within the group. Of the guide's gain of 3 to 5 % ROUGE for summaries no source was found.

Cost for n items in groups of l: "han" time n d^2 (with the GRU 4 n d^2, and l steps one after the other), "transformer"
n l d + 13 n d^2; memory n d. Groups are packed end to end, not padded. Not causal: a group is read as a whole.
Padding-valid: the structure says what is real, and masks take out more. What is empty is a vector of zeros, and has no
weight in what it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, MaskError
from regard._shapes import shape_of
from regard.masks import Documents
from regard.nn._arguments import check_tokens, require_heads, require_positive, require_probability
from regard.nn._card import Card
from regard.nn._dropout import Dropout
from regard.nn._linear_map import LinearMap
from regard.nn._ragged import Groups, Nested, Ragged, like_tokens, pruned, tokens_of
from regard.nn.transformer import TransformerEncoder
from regard.positions import Position

Form = Literal["han", "transformer"]


class Hierarchy(NamedTuple):
    """What `HierarchicalAttention` gives.

    Attributes:
        documents: (documents, embed_dim).
        vectors: of each level the groups it made, end to end: (sentences, embed_dim), (paragraphs, embed_dim), ...;
            the last are the documents.
        weights: of each level the weight of each item in its group, end to end: of tokens in their sentence (tokens,),
            of sentences in their paragraph (sentences,), ... They sum to 1 in each group that is not empty.
        token_weights: the weight of each token in its document, the product over all levels, laid out as the input.
        structure: what belongs to what; `structure.split(weights[i], i)` and `structure.pad(weights[i], i)` give the
            weights group by group.
    """

    documents: Tensor
    vectors: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    token_weights: Tensor
    structure: Ragged


class HierarchicalAttention(nn.Module):
    """Tokens to sentences to paragraphs to documents, with the weights of every level.

    Args:
        embed_dim: width of a token and of every vector.
        num_heads: heads of the self-attention in the form "transformer", a divisor of embed_dim.
        form: "han": items are joined as they are, or after a GRU; "transformer": after self-attention in their group.
        levels: how many times items are joined: 3 for sentence, paragraph and document, 2 for the paper's.
        gru: encode items with a two-way GRU, as in the paper (form "han"). Not for torch.compile(fullgraph=True).
        num_layers: blocks of self-attention at each level (form "transformer").
        positions: for each level how distance changes the scores (form "transformer"), None for a level without. They
            must depend on distances alone, as all of `regard.positions` do but RoPE with a scaling by length.
        dropout_p: probability of dropping: numbers before they are joined ("han"), or as `TransformerEncoder` does.
        backend: who computes the self-attention, as in `regard.attention`.
        device, dtype: of the weights.

    Parameters: `encoders` and `pools`, one for each level; of a pool `map` (W and b) and `context` (u_w).

    Raises:
        ArgumentError: an unknown form, an option of the other form, a size below 1, heads that do not divide embed_dim.
    """

    card: ClassVar[Card] = Card(
        guide="4.1",
        source="Yang et al. 2016, Hierarchical Attention Networks for Document Classification",
        equation="s = sum_i a_i h_i, a = softmax(u . tanh(W h_i + b)) in each group, level by level; groups of l",
        time="n d^2, or n l d + 13 n d^2 in the form 'transformer'",
        memory="n d",
        causal=False,
        padding=True,
        note="It takes a structure (lists of lengths) where others take a mask.",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        form: Form = "han",
        levels: int = 3,
        gru: bool = False,
        num_layers: int = 1,
        positions: Sequence[Position | None] | None = None,
        dropout_p: float = 0.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_heads(embed_dim, num_heads)
        require_positive(levels=levels, num_layers=num_layers)
        require_probability(dropout_p=dropout_p)
        _require_options(form, levels, embed_dim, gru=gru, positions=positions)
        self.embed_dim, self.form, self.levels = embed_dim, form, levels
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        if form == "transformer":
            self.encoders = nn.ModuleList(
                _SelfAttention(
                    TransformerEncoder(
                        embed_dim, num_heads, num_layers, position=position, dropout_p=dropout_p, backend=backend,
                        **made,
                    )
                )
                for position in (positions or [None] * levels)
            )  # fmt: skip
        else:
            self.encoders = nn.ModuleList(_Read(embed_dim, dropout_p, made, gru=gru) for _ in range(levels))
        self.pools = nn.ModuleList(AdditivePooling(embed_dim, **made) for _ in range(levels))

    def forward(
        self,
        x: Tensor,
        structure: Ragged | Nested | None = None,
        *,
        masks: Sequence[Tensor | None] | None = None,
    ) -> Hierarchy:
        """Join tokens to documents.

        Args:
            x: (documents, length, embed_dim), each document from the start of its row, or all documents end to end,
                (tokens, embed_dim).
            structure: the number of tokens of each sentence, in lists as deep as there are levels:
                [[[5, 3], [4]], [[7]]] is a document of two paragraphs and one of one. Or a `Ragged`, from one tensor of
                counts for each level. Left out, each row of x is one sentence.
            masks: for each level None or a bool tensor (items of the level,), True = takes part: of tokens, sentences,
                paragraphs, end to end. What is masked has no weight and no influence.

        Returns:
            The documents, the vectors and the weights of every level; see `Hierarchy`.

        Raises:
            ShapeError: x of another shape, or one that the structure does not fit.
            ArgumentError: a structure of another depth.
            MaskError: masks of other sizes.
        """
        structure = self._structure(x, structure)
        tokens = tokens_of(x, structure)
        levels, documents = pruned(structure, self._masks(structure, masks), x.device)
        items = tokens if levels[0].alive is None else tokens.index_select(0, levels[0].alive)
        found: list[Tensor] = []
        weights: list[Tensor] = []
        for level, encode, pool in zip(levels, self.encoders, self.pools, strict=True):
            items, weight = pool(encode(items, level.groups), level.groups)
            found.append(items)
            weights.append(weight)
        above = [*(level.whole for level in levels[1:]), _whole_documents(documents, structure.documents)]
        vectors = tuple(whole(items) for whole, items in zip(above, found, strict=True))
        shares = levels[0].whole(_shares(weights, [level.groups for level in levels]))
        return Hierarchy(
            documents=vectors[-1],
            vectors=vectors,
            weights=tuple(level.whole(weight) for level, weight in zip(levels, weights, strict=True)),
            token_weights=like_tokens(shares, x, structure),
            structure=structure,
        )

    def _structure(self, x: Tensor, structure: Ragged | Nested | None) -> Ragged:
        packed = isinstance(x, Tensor) and x.dim() == 2 and structure is not None  # pyright: ignore[reportUnnecessaryIsInstance]
        check_tokens("x", x.unsqueeze(0) if packed else x, self.embed_dim)
        if structure is None:
            return Ragged(((x.shape[1],) * x.shape[0], *((1,) * x.shape[0] for _ in range(self.levels - 1))))
        if not isinstance(structure, Ragged):
            return Ragged.from_nested(structure, self.levels)
        if structure.levels != self.levels:
            raise ArgumentError(
                "structure",
                expected=f"{self.levels} levels",
                got=str(structure.levels),
                do="Give counts for each level, or make the module with other levels.",
            )
        return structure

    def _masks(self, structure: Ragged, masks: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
        if masks is None:
            return [None] * self.levels
        if len(masks) != self.levels:
            raise MaskError(
                "masks", expected=f"{self.levels}, one for each level", got=str(len(masks)), do="Give None for no mask."
            )
        for level, mask in enumerate(masks):
            if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (structure.items(level),)):
                raise MaskError(
                    f"masks[{level}]",
                    expected=f"a bool tensor ({structure.items(level)},), one flag for each item of the level",
                    got=f"{mask.dtype} of shape {shape_of(mask)}",
                    do="The items of all groups follow each other; True = takes part.",
                )
        return masks

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, form={self.form!r}, levels={self.levels}"


class AdditivePooling(nn.Module):
    """The weighted mean of each group, with weights from a small network (Bahdanau et al. 2015; Yang et al. 2016)."""

    def __init__(
        self, embed_dim: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.map = LinearMap(embed_dim, embed_dim, device=device, dtype=dtype)
        self.context = nn.Parameter(torch.empty(embed_dim, device=device, dtype=dtype))
        nn.init.xavier_uniform_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        nn.init.uniform_(self.context, -(embed_dim**-0.5), embed_dim**-0.5)

    def forward(self, items: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """(items, embed_dim) to (groups, embed_dim), and the weights (items,), which sum to 1 in each group."""
        working = torch.promote_types(items.dtype, torch.float32)
        scores = (torch.tanh(self.map(items)) @ self.context).to(working)
        if groups.even:
            shares = scores.view(len(groups), groups.longest).softmax(-1)
            joined = (shares.to(items.dtype).unsqueeze(1) @ groups.padded(items)).squeeze(1)
            return joined, shares.flatten().to(items.dtype)
        group = groups.of_items(items.device)
        largest = scores.new_full((len(groups),), -torch.inf)
        largest = largest.scatter_reduce(0, group, scores.detach(), "amax")
        shares = torch.exp(scores - largest[group])
        shares = shares / shares.new_zeros(len(groups)).index_add(0, group, shares)[group]
        joined = shares.new_zeros(len(groups), items.shape[1]).index_add(0, group, shares.unsqueeze(1) * items)
        return joined.to(items.dtype), shares.to(items.dtype)


class _Read(nn.Module):
    """The encoder of the form "han": dropout, and the paper's GRU where it is asked for."""

    def __init__(self, embed_dim: int, dropout_p: float, made: dict[str, Any], *, gru: bool) -> None:
        super().__init__()
        self.gru: nn.GRU | None = None
        if gru:
            self.gru = nn.GRU(embed_dim, embed_dim // 2, batch_first=True, bidirectional=True, **made)
        self.dropout = Dropout(dropout_p)

    def forward(self, items: Tensor, groups: Groups) -> Tensor:
        return self.dropout(items if self.gru is None or not len(groups) else _through(self.gru, items, groups))


class _SelfAttention(nn.Module):
    """The encoder of the form "transformer": every item attends to those of its group."""

    def __init__(self, blocks: TransformerEncoder) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, items: Tensor, groups: Groups) -> Tensor:
        if not len(groups):
            return items
        if groups.even:
            return groups.packed(self.blocks(groups.padded(items)))
        if torch.compiler.is_compiling():  # a graph has a mask of packed groups as all its pairs
            real = groups.real(items.device)
            return groups.packed(self.blocks(groups.padded(items), mask=real[:, None, None]))
        return self.blocks(items.unsqueeze(0), mask=Documents(groups.counts)).squeeze(0)


def _through(gru: nn.GRU, items: Tensor, groups: Groups) -> Tensor:
    """Each group through the GRU by itself."""
    rnn = nn.utils.rnn
    lengths = torch.tensor(groups.counts, dtype=torch.int64)
    packed = rnn.pack_padded_sequence(groups.padded(items), lengths, batch_first=True, enforce_sorted=False)
    read, _ = rnn.pad_packed_sequence(gru(packed)[0], batch_first=True)
    return groups.packed(read)


def _whole_documents(alive: Tensor | None, documents: int) -> Any:
    def whole(found: Tensor) -> Tensor:
        if alive is None:
            return found
        return found.new_zeros(documents, found.shape[1]).index_copy(0, alive, found)

    return whole


def _shares(weights: Sequence[Tensor], groups: Sequence[Groups]) -> Tensor:
    """The weight of each token in its document."""
    above = weights[-1]
    for weight, each in zip(reversed(weights[:-1]), reversed(groups[:-1]), strict=True):
        above = weight * above.index_select(0, each.of_items(weight.device))
    return above


def _require_options(
    form: str, levels: int, embed_dim: int, *, gru: bool, positions: Sequence[Position | None] | None
) -> None:
    if form not in {"han", "transformer"}:
        raise ArgumentError("form", expected="'han' or 'transformer'", got=repr(form), do="See the class.")
    if gru and (form != "han" or embed_dim % 2):
        raise ArgumentError(
            "gru",
            expected="form='han' and an even embed_dim",
            got=f"form={form!r} and {embed_dim}",
            do="Each direction of the GRU gives half the width; self-attention needs none.",
        )
    if positions is not None and (form != "transformer" or len(positions) != levels):
        raise ArgumentError(
            "positions",
            expected=f"form='transformer' and {levels} of them, one for each level",
            got=f"form={form!r} and {len(positions)}",
            do="Give None for a level without a position.",
        )
