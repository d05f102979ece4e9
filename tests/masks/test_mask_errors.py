"""Every MaskError says what, expected what, got what, and what to do."""

from __future__ import annotations

import pytest
import torch
from tests.wording import assert_known

from regard._errors import MaskError, RegardError
from regard.masks import (
    Axial,
    BigBird,
    Blocks,
    Causal,
    CrissCross,
    Dense,
    Dilated,
    Documents,
    GlobalTokens,
    GridBlocks,
    Keys,
    Neighborhood,
    Padding,
    PrefixLM,
    SlidingWindow,
)

WHOLE = "an integer from {} to 2147483647"
BOOL = torch.ones(2, 3, dtype=torch.bool)

CASES = [
    # what, expected, got, do, the fault
    ("F25 causal", "Causal with q_len != kv_len", "align='top_left' or align='bottom_right'",
     "no align, with q_len 3 and kv_len 5", "KV cache", lambda: Causal().dense(3, 5)),
    ("F25 causal blocks", "Causal with q_len != kv_len", "align=", "q_len 3", "align='top_left'",
     lambda: Causal().blocks(3, 5)),
    ("F25 prefix", "PrefixLM with q_len != kv_len", "align=", "q_len 3 and kv_len 5", "PrefixLM(..., align=",
     lambda: PrefixLM(1).check(3, 5)),
    ("align causal", "Causal align", "'top_left', 'bottom_right' or None", "'left'", "KV", lambda: Causal("left")),
    ("align window", "SlidingWindow align", "None", "'x'", "Say", lambda: SlidingWindow(1, align="x")),
    ("align dilated", "Dilated align", "None", "'x'", "Say", lambda: Dilated(1, align="x")),
    ("align global", "GlobalTokens align", "None", "'x'", "Say", lambda: GlobalTokens(1, align="x")),
    ("align blocks", "Blocks align", "None", "'x'", "Say", lambda: Blocks(1, align="x")),
    ("align prefix", "PrefixLM align", "None", "'x'", "Say", lambda: PrefixLM(1, align="x")),
    ("F14 window", "SlidingWindow before", WHOLE.format(0), "-1", "sets no bound", lambda: SlidingWindow(-1)),
    ("F14 after", "SlidingWindow after", WHOLE.format(0), "-2", "sets no bound", lambda: SlidingWindow(1, -2)),
    ("F14 huge", "SlidingWindow before", WHOLE.format(0), "2147483648", "tokens", lambda: SlidingWindow(2**31)),
    ("F14 float", "SlidingWindow before", WHOLE.format(0), "2.0", "tokens", lambda: SlidingWindow(2.0)),
    ("F14 bool", "SlidingWindow before", WHOLE.format(0), "True", "tokens", lambda: SlidingWindow(True)),
    ("F14 dilation", "Dilated step", WHOLE.format(1), "0", "tokens", lambda: Dilated(0)),
    ("F14 dilated before", "Dilated before", WHOLE.format(0), "-1", "tokens", lambda: Dilated(2, -1)),
    ("F14 dilated after", "Dilated after", WHOLE.format(0), "-1", "tokens", lambda: Dilated(2, 1, -1)),
    ("blocks size", "Blocks size", WHOLE.format(1), "0", "tokens", lambda: Blocks(0)),
    ("block size", "block size", WHOLE.format(1), "0", "tokens", lambda: Causal().blocks(4, 4, 0)),
    ("global count", "GlobalTokens count", WHOLE.format(0), "-3", "tokens", lambda: GlobalTokens(-3)),
    ("global index", "GlobalTokens tokens[1]", WHOLE.format(0), "-1", "tokens", lambda: GlobalTokens([0, -1])),
    ("F16 global", "GlobalTokens tokens", "indices below 5, for q_len 3 and kv_len 5", "5", "tokens of this text",
     lambda: GlobalTokens([1, 5]).dense(3, 5)),
    ("F16 prefix", "PrefixLM length", "at most kv_len 4", "5", "this text's prefix", lambda: PrefixLM(5).dense(4, 4)),
    ("prefix negative", "PrefixLM length", WHOLE.format(0), "-1", "tokens", lambda: PrefixLM(-1)),
    ("bigbird block", "BigBird block_size", WHOLE.format(1), "0", "tokens", lambda: BigBird(0)),
    ("bigbird window", "BigBird window_blocks", "an odd number", "2", "Take 3", lambda: BigBird(4, 2)),
    ("bigbird window 0", "BigBird window_blocks", WHOLE.format(1), "0", "tokens", lambda: BigBird(4, 0)),
    ("bigbird random", "BigBird random_blocks", WHOLE.format(0), "-1", "tokens", lambda: BigBird(4, random_blocks=-1)),
    ("bigbird seed", "BigBird seed", WHOLE.format(0), "-1", "tokens", lambda: BigBird(4, seed=-1)),
    ("bigbird global", "BigBird global_blocks", WHOLE.format(0), "-1", "tokens", lambda: BigBird(4, global_blocks=-1)),
    ("bigbird ends", "BigBird global_blocks", "a pair (first, last)", "(1, 2, 3)", "(1, 1)",
     lambda: BigBird(4, global_blocks=[1, 2, 3])),
    ("bigbird last", "BigBird global_blocks[1]", WHOLE.format(0), "-1", "tokens",
     lambda: BigBird(4, global_blocks=(1, -1))),
    ("bigbird text", "BigBird global_blocks", "a list, a tuple or a 1-D tensor of integers", "'a'", "[3, 5]",
     lambda: BigBird(4, global_blocks="a")),
    ("F16 bigbird", "BigBird with q_len != kv_len", "as many queries as keys", "q_len 8 and kv_len 9", "self-attention",
     lambda: BigBird(4).dense(8, 9)),
    ("F17 negative", "Documents lengths[1]", WHOLE.format(0), "-2", "tokens", lambda: Documents([4, -2])),
    ("F16 documents", "Documents lengths", "a sum equal to q_len 6 and kv_len 6", "5", "a document of its own",
     lambda: Documents([2, 3]).dense(6, 6)),
    ("F16 documents keys", "Documents lengths", "q_len 5 and kv_len 6", "5", "padding",
     lambda: Documents([2, 3]).blocks(5, 6)),
    ("F17 start", "Documents offsets", "a first offset of 0", "1", "where each document starts",
     lambda: Documents.from_offsets([1, 5])),
    ("F17 none", "Documents offsets", "a first offset of 0", "no offsets", "where each document starts",
     lambda: Documents.from_offsets([])),
    ("F17 decreasing", "Documents offsets", "offsets that never decrease", "5 before 4", "Documents(lengths)",
     lambda: Documents.from_offsets([0, 5, 4])),
    ("F17 end", "Documents offsets", "a last offset of 9, the total", "8", "number of tokens",
     lambda: Documents.from_offsets(torch.tensor([0, 5, 8]), total=9)),
    ("F17 below 0", "Documents offsets[1]", WHOLE.format(0), "-1", "tokens", lambda: Documents.from_offsets([0, -1])),
    ("grid blocks", "GridBlocks shape[0]", WHOLE.format(1), "0", "tokens", lambda: GridBlocks((0, 3), 1)),
    ("lengths 2-D", "Documents lengths", "a 1-D tensor of integers", "a 2-D tensor of torch.int64", "values.long()",
     lambda: Documents(torch.ones(1, 2, dtype=torch.int64))),
    ("lengths float", "Padding lengths", "a 1-D tensor of integers", "a 1-D tensor of torch.float32", "values.long()",
     lambda: Padding(torch.ones(2))),
    ("lengths bool", "Padding lengths[0]", WHOLE.format(0), "True", "tokens", lambda: Padding(BOOL[0])),
    ("lengths number", "Padding lengths", "a list, a tuple or a 1-D tensor of integers", "3", "[3, 5]",
     lambda: Padding(3)),
    ("lengths text", "Documents lengths", "a list", "'35'", "[3, 5]", lambda: Documents("35")),
    ("F16 padding", "Padding lengths", "at most kv_len 4", "5 in sample 1", "real keys",
     lambda: Padding([2, 5]).dense(9, 4)),
    ("padding negative", "Padding lengths[0]", WHOLE.format(0), "-1", "tokens", lambda: Padding([-1])),
    ("padding side", "Padding side", "'right' or 'left'", "'top'", "where the padding stands",
     lambda: Padding([1], side="top")),
    ("F22 padding shape", "attention_mask", "shape (batch, kv_len)", "(3,)", "Dense(mask)",
     lambda: Padding.from_attention_mask(BOOL[0])),
    ("F20 float padding", "attention_mask", "bool, or integers 0 and 1", "torch.float32", "is a bias",
     lambda: Padding.from_attention_mask(BOOL.float())),
    ("F23 numbers", "attention_mask", "only 0 (padding) and 1 (real)", "values from 0 to 2", "Documents(lengths)",
     lambda: Padding.from_attention_mask(torch.tensor([[0, 1, 2]]))),
    ("F23 key padding", "key_padding_mask", "bool, True = padding", "torch.int64", "from_attention_mask",
     lambda: Padding.from_key_padding_mask(BOOL.long())),
    ("F22 key padding", "key_padding_mask", "shape (batch, kv_len)", "(1, 2, 3)", "Dense(mask)",
     lambda: Padding.from_key_padding_mask(BOOL[None])),
    ("F19 keys", "Keys", "a bool tensor of shape (batch, kv_len)", "torch.int64 of shape (2, 3)", ".bool()",
     lambda: Keys(BOOL.long())),
    ("F16 keys", "Keys", "kv_len 4 keys", "3", "those in the cache included", lambda: Keys(BOOL).dense(2, 4)),
    ("F22 dense 3-D", "Dense mask", "(q_len, kv_len) or (batch or 1, heads or 1, q_len, kv_len)", "(1, 2, 3)",
     "mask[:, None]", lambda: Dense(BOOL[None])),
    ("F22 dense 1-D", "Dense mask", "(q_len, kv_len)", "(3,)", "dimension", lambda: Dense(BOOL[0])),
    ("F22 dense shape", "Dense mask", "(q_len, kv_len) = (3, 2)", "(2, 3)", "from_attention_mask",
     lambda: Dense(BOOL).dense(3, 2)),
    ("F22 batch for queries", "Dense mask", "(q_len, kv_len) = (7, 3)", "(2, 3)", "from_attention_mask",
     lambda: Dense(BOOL).blocks(7, 3)),
    ("F16 grid", "Axial shape", "8 tokens, with q_len 8 and kv_len 8", "9, for shape (3, 3)", "class token",
     lambda: Axial((3, 3), 0).dense(8, 8)),
    ("F16 grid keys", "CrissCross shape", "q_len 9 and kv_len 8", "9, for shape (3, 3)", "grid of the tokens",
     lambda: CrissCross((3, 3)).blocks(9, 8)),
    ("grid none", "CrissCross shape", "at least one axis", "()", "(height, width)", lambda: CrissCross(())),
    ("grid empty", "Neighborhood shape[1]", WHOLE.format(1), "0", "tokens", lambda: Neighborhood((3, 0), 1)),
    ("axial empty", "Axial shape[0]", WHOLE.format(1), "0", "tokens", lambda: Axial((0, 3), 0)),
    ("grid axis", "Axial axis", "an integer from -2 to 1", "2", "the shape (3, 3)", lambda: Axial((3, 3), 2)),
    ("grid radius", "Neighborhood radius[0]", WHOLE.format(0), "-1", "tokens", lambda: Neighborhood((3, 3), -1)),
    ("grid radii", "Neighborhood radius", "one for each of 2 axes", "(1, 2, 3)", "Match the shape",
     lambda: Neighborhood((3, 3), (1, 2, 3))),
    ("grid divides", "GridBlocks grid", "divisors of the shape (6, 4)", "(4, 4)", "Pad the tokens",
     lambda: GridBlocks((6, 4), 4)),
    ("grid count", "GridBlocks grid[1]", WHOLE.format(1), "0", "tokens", lambda: GridBlocks((6, 4), (2, 0))),
    ("grid counts", "GridBlocks grid", "one for each of 2 axes", "(2, 2, 2)", "Match the shape",
     lambda: GridBlocks((6, 4), (2, 2, 2))),
    ("batch sizes", "masks combined with & or | differ in batch size", "the same batch size", "2 and 3",
     "for one problem", lambda: Padding([1, 2]) & Padding([1, 2, 3])),
    ("head counts", "masks combined with & or | differ in head count", "the same head count", "2 and 3",
     "for one problem",
     lambda: Dense(BOOL.expand(1, 2, 2, 3)) | ~Dense(BOOL.expand(1, 3, 2, 3))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "expected", "got", "do", "fault"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_wording(what, expected, got, do, fault):
    with pytest.raises(MaskError) as caught:
        fault()
    message = str(caught.value)
    named, _, rest = message.partition(": expected ")
    wanted, _, rest = rest.rpartition(", got ")
    given, _, advice = rest.partition(". ")
    assert named == what
    assert expected in wanted
    assert given == got or (got in given and len(got) > 1)
    assert do in message.removeprefix(named)
    assert advice.endswith(".")
    assert isinstance(caught.value, RegardError | ValueError)
    assert_known(message)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_f19_dense_takes_bool_only(dtype):
    with pytest.raises(
        MaskError, match=r"Dense mask: expected a bool tensor.*got torch\.\w+\. Take \.bool\(\)"
    ) as caught:
        Dense(torch.ones(2, 3, dtype=dtype))
    assert_known(str(caught.value))


@pytest.mark.parametrize("mask", [SlidingWindow(1), Blocks(2), Dilated(2), GlobalTokens(1)], ids=repr)
def test_masks_on_plain_indices_need_no_align(mask):
    assert mask.dense(3, 5).shape == (3, 5)
