"""What attention by sums has in common: over all tokens at once or in order, and decoding with a state of one size."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from regard._errors import UnsupportedError
from regard.masks import Mask
from regard.nn._causal_scan import Sums, empty_sums
from regard.nn._precision import in_full_precision
from regard.nn._projections import HeadProjections
from regard.nn._real_tokens import check_pair, real_tokens
from regard.nn._scan_state import ScanState, check_state, check_token


def sums_over_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """sum_j (q_i . k_j) v_j / sum_j (q_i . k_j), 0 where the products are all 0.

    query, key: features, none negative, (batch, heads, length, features). value: (batch, heads, length, value_dim).
    Returns (batch, heads, q_len, value_dim) in the dtype of the value.
    """
    summed = key.mT @ value.to(key.dtype)
    total = query @ key.sum(2).unsqueeze(-1)
    smallest = torch.finfo(total.dtype).tiny
    # By 1 where there is nothing to divide by: a gradient over the smallest number would be Inf, and Inf times 0 NaN.
    return (query @ summed).div(total.where(total >= smallest, 1.0)).to(value.dtype)


def without_padding(tensor: Tensor, real: Tensor | None) -> Tensor:
    """(batch, heads, length, width) with 0 for the tokens that are not real."""
    return tensor if real is None else tensor.masked_fill(~real[:, None, :, None], 0.0)


class SummedAttention(HeadProjections):
    """Attention of features: a subclass says what they are (`_over_all`, `_in_order`) and how many (`_features`)."""

    @property
    @abstractmethod
    def _features(self) -> int:
        """Of one head."""

    @abstractmethod
    def _over_all(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        """(batch, heads, length, head_dim), every token seeing all real ones. Padded keys and values are 0."""

    @abstractmethod
    def _in_order(
        self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, before: Sums | None
    ) -> tuple[Tensor, Sums]:
        """The same with every token seeing those up to itself; and the sums after the last token."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor, *, real: Tensor | None = None) -> Tensor:
        """The mechanism without its projections.

        Args:
            query: (batch, heads, length, head_dim).
            key, value: (batch, heads, context_length, head_dim); with `causal` as many as queries.
            real: bool (batch, context_length), the real keys; all unless given.

        Returns:
            (batch, heads, length, head_dim) in the dtype of the value.
        """
        key, value = without_padding(key, real), without_padding(value, real)
        with in_full_precision(query):
            if self.causal:
                return self._in_order(query, key, value, real, None)[0]
            return self._over_all(query, key, value, real)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Mask | Tensor | None = None,
        state: ScanState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ScanState]:
        """Attend.

        Args:
            x: (batch, length, embed_dim).
            context: (batch, context_length, embed_dim), what is attended to; x when left out. Not with `causal`.
            mask: which of the tokens attended to are real: Padding(lengths), or bool (batch, context_length).
            state: with `causal`, from the call that read the tokens before these.
            return_state: give the next state, too.

        Returns:
            (batch, length, embed_dim). A query that may attend to nothing gets the output projection of 0.

        Raises:
            ShapeError, MaskError: tensors, masks or a state that do not fit.
            UnsupportedError: a mask of pairs; a context with `causal`; a state without it.
        """
        name = type(self).__name__
        attended = check_pair(x, context, self.embed_dim)
        if self.causal and context is not None:
            raise UnsupportedError(
                {name: "with causal=True it attends to its own tokens, and a context has no place in their order"},
                do="Leave the context out, or make a second module without causal for it.",
            )
        real = real_tokens(name, mask, attended)
        if state is None and not return_state:
            return self.from_heads(self.mix(*self.to_heads(x, context), real=real))
        self._require_state()
        output, after = self._read(x, real, state)
        return (output, after) if return_state else output

    def step(self, x: Tensor, state: ScanState) -> tuple[Tensor, ScanState]:
        """One token of each sample, (batch, embed_dim) -> (batch, embed_dim), and the next state.

        What `forward` gives for it in the whole text, at a cost that does not grow with the text.

        Raises:
            ShapeError: sizes that do not fit.
            UnsupportedError: the module is not causal.
        """
        self._require_state()
        check_token(x, self.embed_dim)
        output, after = self._read(x.unsqueeze(1), None, state)
        return output.squeeze(1), after

    def make_state(self, batch: int) -> ScanState:
        """The state before the first token, all zeros: `values` (batch, num_heads, features, head_dim), `keys`
        (batch, num_heads, features) and `scale` (batch, num_heads), in float32 at least.

        Raises:
            UnsupportedError: the module is not causal.
        """
        self._require_state()
        like = self.in_proj_weight.new_empty(batch, self.num_heads, 0, self.head_dim)
        return _state_of(empty_sums(like, like, self._features))

    def _read(self, x: Tensor, real: Tensor | None, state: ScanState | None) -> tuple[Tensor, ScanState]:
        query, key, value = self.to_heads(x)
        key, value = without_padding(key, real), without_padding(value, real)
        before = None
        if state is not None:
            tensors = check_state(state, x.shape[0], self.make_state(0)).tensors
            before = (tensors["values"], tensors["keys"], tensors["scale"])
        with in_full_precision(query):
            output, after = self._in_order(query, key, value, real, before)
        return self.from_heads(output), _state_of(after)

    def _require_state(self) -> None:
        if not self.causal:
            raise UnsupportedError(
                {type(self).__name__: "without causal=True a token depends on those that are still to come"},
                do="Make the module with causal=True to read a text piece by piece.",
            )


def _state_of(sums: Sums) -> ScanState:
    return ScanState(dict(zip(("values", "keys", "scale"), sums, strict=True)))
