"""The structures of `csrc/regard.h`, repeated field for field; a test compares them with the header."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int32, c_int64, c_uint64, c_void_p


class Rows(Structure):
    """`regard_rows`: rows of numbers; the stride of a row's numbers is 1."""

    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("row_stride", c_int64),
    )


class Pairs(Structure):
    """`regard_pairs`: a view that broadcasts to (batch, heads, q_len, kv_len)."""

    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("query_stride", c_int64),
        ("key_stride", c_int64),
    )


class Mask(Structure):
    """`regard_mask`: band, intervals and words; a pair passes all of them."""

    _fields_ = (
        ("before", c_int64),
        ("after", c_int64),
        ("offset", c_int64),
        ("intervals", c_void_p),
        ("interval_count", c_int64),
        ("interval_batch_stride", c_int64),
        ("interval_head_stride", c_int64),
        ("words", c_void_p),
        ("tile_first", c_void_p),
        ("tile_keys", c_void_p),
        ("tile_word", c_void_p),
        ("word_batch_stride", c_int64),
        ("word_head_stride", c_int64),
    )


class Table(Structure):
    """`regard_table`: one row for each distance."""

    _fields_ = (("data", c_void_p), ("head_stride", c_int64), ("row_stride", c_int64))


class Problem(Structure):
    """`regard_problem`."""

    _fields_ = (
        ("dtype", c_int32),
        ("threads", c_int32),
        ("batch", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("q_len", c_int64),
        ("kv_len", c_int64),
        ("head_dim", c_int64),
        ("value_dim", c_int64),
        ("query", Rows),
        ("key", Rows),
        ("value", Rows),
        ("scale", c_double),
        ("softcap", c_double),
        ("mask", Mask),
        ("bias", Pairs),
        ("distance_offset", c_int64),
        ("distance_bias", Table),
        ("distance_query", Rows),
        ("distance_keys", Table),
        ("distance_values", Table),
        ("sink", c_void_p),
        ("seed", c_uint64),
        ("drop_below", c_uint64),
        ("keep_scale", c_double),
    )


class ForwardResults(Structure):
    """`regard_forward_results`."""

    _fields_ = (("output", Rows), ("lse", c_void_p), ("lse_low", c_void_p))


class BackwardArguments(Structure):
    """`regard_backward_arguments`."""

    _fields_ = (
        ("output", Rows),
        ("grad_output", Rows),
        ("lse", c_void_p),
        ("lse_low", c_void_p),
        ("grad_lse", c_void_p),
        ("grad_query", Rows),
        ("grad_key", Rows),
        ("grad_value", Rows),
        ("grad_bias", Pairs),
        ("grad_distance_query", Rows),
        ("grad_distance_bias", c_void_p),
        ("grad_distance_keys", c_void_p),
        ("grad_distance_values", c_void_p),
        ("table_splits", c_int64),
    )


class WeightsArguments(Structure):
    """`regard_weights_arguments`."""

    _fields_ = (
        ("heads", c_void_p),
        ("rows", c_void_p),
        ("cols", c_void_p),
        ("head_count", c_int64),
        ("row_count", c_int64),
        ("col_count", c_int64),
        ("lse", c_void_p),
        ("lse_low", c_void_p),
        ("found_top", c_void_p),
        ("found_rest", c_void_p),
        ("weights", c_void_p),
    )


class StatisticsResults(Structure):
    """`regard_statistics_results`."""

    _fields_ = (
        ("entropy", c_void_p),
        ("max_logit", c_void_p),
        ("sink_share", c_void_p),
        ("distance", c_void_p),
        ("received", c_void_p),
        ("top_count", c_int64),
        ("top_weights", c_void_p),
        ("top_keys", c_void_p),
        ("pooled_side", c_int64),
        ("pooled", c_void_p),
    )


class Product(Structure):
    """`regard_product`."""

    _fields_ = (
        ("dtype", c_int32),
        ("threads", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("steps", c_int64),
        ("a", c_void_p),
        ("a_row", c_int64),
        ("a_step", c_int64),
        ("b", c_void_p),
        ("b_step", c_int64),
        ("b_column", c_int64),
        ("bias", c_void_p),
        ("c", c_void_p),
        ("c_row", c_int64),
    )


class CausalScan(Structure):
    """`regard_causal_scan`."""

    _fields_ = (
        ("threads", c_int32),
        ("opposites", c_int32),
        ("batch", c_int64),
        ("heads", c_int64),
        ("length", c_int64),
        ("width", c_int64),
        ("features", c_int64),
        ("value_dim", c_int64),
        ("query", Rows),
        ("key", Rows),
        ("value", Rows),
        ("log_weight", Rows),
        ("projection", c_void_p),
        ("values", c_void_p),
        ("keys", c_void_p),
        ("scale", c_void_p),
    )


class CausalScanResults(Structure):
    """`regard_causal_scan_results`."""

    _fields_ = (
        ("output", Rows),
        ("normaliser", c_void_p),
        ("values", c_void_p),
        ("keys", c_void_p),
        ("scale", c_void_p),
    )


class CausalScanGradients(Structure):
    """`regard_causal_scan_gradients`."""

    _fields_ = (
        ("output", Rows),
        ("grad_output", Rows),
        ("normaliser", c_void_p),
        ("grad_values", c_void_p),
        ("grad_keys", c_void_p),
        ("grad_query", Rows),
        ("grad_key", Rows),
        ("grad_value", Rows),
        ("grad_log", c_void_p),
        ("grad_values_before", c_void_p),
        ("grad_keys_before", c_void_p),
    )


class SelectiveScan(Structure):
    """`regard_selective_scan`."""

    _fields_ = (
        ("threads", c_int32),
        ("batch", c_int64),
        ("length", c_int64),
        ("channels", c_int64),
        ("numbers", c_int64),
        ("inputs", Rows),
        ("step", Rows),
        ("write", Rows),
        ("read", Rows),
        ("decay", c_void_p),
        ("state", c_void_p),
    )


class SelectiveScanResults(Structure):
    """`regard_selective_scan_results`."""

    _fields_ = (("output", Rows), ("last", c_void_p), ("begins", c_void_p))


class SelectiveScanGradients(Structure):
    """`regard_selective_scan_gradients`."""

    _fields_ = (
        ("grad_output", Rows),
        ("grad_last", c_void_p),
        ("begins", c_void_p),
        ("grad_inputs", Rows),
        ("grad_step", Rows),
        ("grad_decay", c_void_p),
        ("grad_write", c_void_p),
        ("grad_read", c_void_p),
        ("grad_state", c_void_p),
    )


_LETTERS: dict[object, str] = {c_int32: "i", c_int64: "q", c_uint64: "Q", c_double: "d", c_void_p: "P"}


def flat_format(structure: type[Structure]) -> str:
    """The numbers of a structure, nested ones in their place, as a format of the module `struct`."""
    kinds: list[type] = [field[1] for field in structure._fields_]
    return "".join(flat_format(kind) if issubclass(kind, Structure) else _LETTERS[kind] for kind in kinds)


STRUCTURES: dict[str, type[Structure]] = {
    "regard_rows": Rows,
    "regard_pairs": Pairs,
    "regard_mask": Mask,
    "regard_table": Table,
    "regard_problem": Problem,
    "regard_forward_results": ForwardResults,
    "regard_backward_arguments": BackwardArguments,
    "regard_weights_arguments": WeightsArguments,
    "regard_statistics_results": StatisticsResults,
    "regard_product": Product,
    "regard_causal_scan": CausalScan,
    "regard_causal_scan_results": CausalScanResults,
    "regard_causal_scan_gradients": CausalScanGradients,
    "regard_selective_scan": SelectiveScan,
    "regard_selective_scan_results": SelectiveScanResults,
    "regard_selective_scan_gradients": SelectiveScanGradients,
}
