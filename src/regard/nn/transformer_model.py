"""The whole Transformer from tokens to tokens: embeddings, encoder, decoder, output head. The guide's 2.1.

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762: embeddings times sqrt(embed_dim)
plus sinusoids of the place (3.4, 3.5), and an output head that shares the target embedding's weight. Instead of, or
beside, the absolute places each stack may have any position of `regard.positions`, as the guide advises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from regard._errors import ArgumentError, ShapeError
from regard._shapes import shape_of
from regard.masks import Mask
from regard.nn._arguments import require_positive
from regard.nn._block_parts import BlockOptions, Positions
from regard.nn._cache import CacheStack
from regard.nn._dropout import Dropout
from regard.nn._linear_map import LinearMap
from regard.nn.transformer import TransformerDecoder, TransformerEncoder
from regard.nn.transformer_generate import Generated, beam_search
from regard.positions.transformer_xl import sinusoid

Absolute = Literal["sinusoid", "learned"]


class TokenEmbedding(nn.Module):
    """Tokens (batch, length) to vectors (batch, length, embed_dim), with their absolute places when asked for.

    Args:
        size: of the vocabulary.
        embed_dim: width, even with "sinusoid".
        absolute: "sinusoid", "learned" (then most_tokens says how many places there are), or None.
        dropout_p: chance of dropping a number of the sum.
    """

    def __init__(
        self,
        size: int,
        embed_dim: int,
        *,
        absolute: Absolute | None = "sinusoid",
        most_tokens: int | None = None,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive(size=size, embed_dim=embed_dim)
        _check_absolute(absolute, embed_dim, most_tokens)
        self.embed_dim, self.absolute, self.most_tokens = embed_dim, absolute, most_tokens
        self.weight = nn.Parameter(torch.empty(size, embed_dim, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)
        self.places: nn.Parameter | None = None
        if absolute == "learned":
            self.places = nn.Parameter(torch.empty(most_tokens or 0, embed_dim, device=device, dtype=dtype))
            nn.init.normal_(self.places, std=0.02)
        self.dropout = Dropout(dropout_p)

    def forward(self, tokens: Tensor, *, first: int = 0) -> Tensor:
        """`first` is the place of the first token: the length of the cache when decoding."""
        _check_tokens(tokens)
        states = nn.functional.embedding(tokens, self.weight) * math.sqrt(self.embed_dim)
        places = self._places(first, tokens.shape[1])
        return self.dropout(states if places is None else states + places)

    def _places(self, first: int, count: int) -> Tensor | None:
        if self.absolute is None:
            return None
        if self.places is None:
            steps = torch.arange(first, first + count, device=self.weight.device)
            return sinusoid(steps, self.embed_dim, 10000.0).to(self.weight.dtype)
        if first + count > self.places.shape[0]:
            raise ShapeError(
                "tokens",
                expected=f"at most {self.places.shape[0]}, the learned places",
                got=str(first + count),
                do="Make it with a larger most_tokens, or take absolute='sinusoid' or a relative position.",
            )
        return self.places[first : first + count]


class Transformer(nn.Module):
    """Encoder and decoder with their embeddings and the output head: source tokens and target tokens to logits.

    Args:
        source_size, target_size: of the vocabularies.
        embed_dim, num_heads: as in `MultiHeadAttention`.
        encoder_layers, decoder_layers: blocks.
        absolute: places added to the embeddings: "sinusoid", "learned" (with most_tokens), or None.
        most_tokens: the longest text, for learned places.
        position, decoder_position: relative positions, one for all layers or what makes one for each.
        share: source and target have one vocabulary and one embedding.
        tie: the output head shares the target embedding's weight.
        options: see `BlockOptions`; dropout_p is 0.1 unless given.

    Raises:
        ArgumentError: sizes that do not fit, and what the blocks refuse.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        embed_dim: int = 512,
        num_heads: int = 8,
        *,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        absolute: Absolute | None = "sinusoid",
        most_tokens: int | None = None,
        position: Positions = None,
        decoder_position: Positions = None,
        share: bool = False,
        tie: bool = True,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        options["dropout_p"] = dropout_p = options.get("dropout_p", 0.1)
        device, dtype = options.get("device"), options.get("dtype")
        if share and source_size != target_size:
            raise ArgumentError(
                "share",
                expected="vocabularies of one size",
                got=f"{source_size} and {target_size}",
                do="Join them first.",
            )

        def embedding(size: int) -> TokenEmbedding:
            return TokenEmbedding(
                size,
                embed_dim,
                absolute=absolute,
                most_tokens=most_tokens,
                dropout_p=dropout_p,
                device=device,
                dtype=dtype,
            )

        self.target_embedding = embedding(target_size)
        self.source_embedding = self.target_embedding if share else embedding(source_size)
        self.encoder = TransformerEncoder(embed_dim, num_heads, encoder_layers, position=position, **options)
        self.decoder = TransformerDecoder(embed_dim, num_heads, decoder_layers, position=decoder_position, **options)
        self.head = LinearMap(embed_dim, target_size, bias=False, device=device, dtype=dtype)
        nn.init.xavier_uniform_(self.head.weight)
        if tie:
            self.head.weight = self.target_embedding.weight

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_mask: Mask | Tensor | None = None,
        target_mask: Mask | Tensor | None = None,
    ) -> Tensor:
        """Logits (batch, target length, target_size): at each place those of the token after it.

        Args:
            source: int (batch, source length).
            target: int (batch, target length), beginning with the begin token.
            source_mask: which source tokens are real: `Padding(lengths)`, or bool (batch, source length).
            target_mask: which target tokens may see which; causal it is anyway.
        """
        mask = _of_keys(source_mask)
        return self.decode(target, self.encode(source, mask=mask), mask=target_mask, context_mask=mask)

    def encode(self, source: Tensor, *, mask: Mask | Tensor | None = None) -> Tensor:
        """(batch, source length, embed_dim), what the decoder attends to."""
        return self.encoder(self.source_embedding(source), mask=_of_keys(mask))

    def decode(
        self,
        target: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        context_mask: Mask | Tensor | None = None,
        cache: CacheStack | None = None,
        beams: int = 1,
    ) -> Tensor:
        """Logits (batch * beams, target length, target_size); see `TransformerDecoder`."""
        states = self.target_embedding(target, first=0 if cache is None else cache.length)
        states = self.decoder(
            states, context, mask=_of_keys(mask), context_mask=_of_keys(context_mask), cache=cache, beams=beams
        )
        return self.head(states)

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        *,
        begin: int,
        end: int,
        most_tokens: int = 128,
        beams: int = 1,
        best: int = 1,
        length_penalty: float = 1.0,
        mask: Mask | Tensor | None = None,
        never: Sequence[int] = (),
        pad: int | None = None,
        use_cache: bool = True,
    ) -> Generated:
        """Write the likeliest targets of these sources, without dropout; see `beam_search`.

        Args:
            source: int (batch, source length).
            begin, end: the tokens with which a target begins and ends.
            mask: which source tokens are real: `Padding(lengths)`, or bool (batch, source length).
            never: tokens that are not to be written, such as padding.
            use_cache: keep keys and values between steps. Without, every step reads the whole text again.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            mask = _of_keys(mask)
            context = self.encode(source, mask=mask)
            cache = self.decoder.make_cache(context, most_tokens, beams=beams) if use_cache else None

            def step(texts: Tensor) -> Tensor:
                if cache is None:
                    logits = self.decode(texts, context, context_mask=mask, beams=beams)
                else:
                    logits = self.decode(texts[:, cache.length :], context_mask=mask, cache=cache, beams=beams)
                return _without(logits[:, -1], never)

            return beam_search(
                step,
                torch.full((source.shape[0], 1), begin, dtype=torch.int64, device=source.device),
                end=end,
                most_tokens=most_tokens,
                beams=beams,
                best=best,
                length_penalty=length_penalty,
                pad=pad,
                reorder=None if cache is None else cache.reorder,
            )
        finally:
            for module in training:
                module.training = True


def _of_keys(mask: Mask | Tensor | None) -> Mask | Tensor | None:
    """A bool tensor (batch, length) says which tokens are real; here no 2-D tensor means anything else."""
    return mask[:, None, None] if isinstance(mask, Tensor) and mask.dim() == 2 else mask


def _without(logits: Tensor, never: Sequence[int]) -> Tensor:
    if not never:
        return logits
    return logits.index_fill(1, torch.tensor(never, device=logits.device), -math.inf)


def _check_tokens(tokens: Tensor) -> None:
    if tokens.dim() != 2 or tokens.dtype not in {torch.int64, torch.int32}:
        raise ShapeError(
            "tokens",
            expected="int64 or int32 (batch, length)",
            got=f"{tokens.dtype} {shape_of(tokens)}",
            do="Give the numbers of the tokens, one text in each row.",
        )


def _check_absolute(absolute: Absolute | None, embed_dim: int, most_tokens: int | None) -> None:
    if absolute not in {"sinusoid", "learned", None}:
        raise ArgumentError(
            "absolute", expected="'sinusoid', 'learned' or None", got=repr(absolute), do="Name one of these."
        )
    if absolute == "sinusoid" and embed_dim % 2:
        raise ArgumentError(
            "embed_dim", expected="an even width for sinusoids", got=str(embed_dim), do="Half are sines, half cosines."
        )
    if absolute == "learned" and (most_tokens is None or most_tokens < 1):
        raise ArgumentError(
            "most_tokens",
            expected="the number of learned places",
            got=repr(most_tokens),
            do="Say how long the longest text is.",
        )
