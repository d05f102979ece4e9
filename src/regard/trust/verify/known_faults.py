"""What is known of torch's own scaled_dot_product_attention, by the cases of `verify` that it fails.

A known fault is a failure: whoever calls torch gets it. The text only says that it is known, and since when it was last
seen. tests/trust/test_verify_torch.py fails when torch 2.13 fails another case, or fails one of these no more.
"""

from __future__ import annotations

from collections.abc import Mapping

_LEAK = "a NaN or Inf in a key or value that is masked leaks into output or gradients (torch issue 101967, in 2.13)"
_VANISH = "a query or key full of NaN gives zeros on CPU (torch issue 141128, seen in 2.13)"
_SCALED = (
    "on CPU is_causal=True with a scale that is not positive gives NaN, a mask in its place does not (seen in 2.13)"
)

TORCH: Mapping[str, str] = {
    "nan-in-masked-key": _LEAK,
    "nan-in-masked-value": _LEAK,
    "nan-in-one-value": _LEAK,
    "inf-in-one-value": _LEAK,
    "nan-in-key-after-causal": _LEAK,
    "nan-in-query-of-empty-row": _LEAK,
    "inf-in-masked-key": _LEAK,
    "inf-in-masked-value": _LEAK,
    "nan-in-one-query": _VANISH,
    "nan-in-every-query": _VANISH,
    "nan-in-every-key": _VANISH,
    "causal-with-scale-negative": _SCALED,
    "causal-with-scale-zero": _SCALED,
    "value-shorter-than-key": "the keys that have no value are dropped without a word (seen in 2.13)",
    "fewer-value-heads-than-key-heads": "enable_gqa repeats key and value each by its own factor (seen in 2.13)",
    "scale-nan": "a scale of NaN gives zeros on CPU (seen in 2.13)",
}
