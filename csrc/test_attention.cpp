/* test_attention.cpp: forward, with the path for few queries, and backward. */
#include "test_compare.h"

Forwarded run_forward(const Case &c, int32_t threads, int *status) {
  const regard_problem p = handed_over(c, threads);
  const int type = working(c.dtype);
  Forwarded f{Rows(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, (c.layout + 2) % 3),
              Rows(type, c.batch, c.heads, c.q_len, 1, 0), Rows(type, c.batch, c.heads, c.q_len, 1, 0)};
  const bool with_low = c.seed % 3 != 0;
  const regard_forward_results r{f.output.view(), f.lse.memory.get(), with_low ? f.low.memory.get() : nullptr};
  *status = regard_forward(&p, &r);
  compare_status(c, "forward", *status, f.output.all_finite());
  if (!f.output.gaps_are_whole()) fail(c, "output", "written between its rows");
  return f;
}

Forwarded check_forward(const Case &c, const Expected &e, int32_t threads) {
  int status;
  Forwarded f = run_forward(c, threads, &status);
  if (status != REGARD_OK) fail(c, "forward", "another status than 0");
  const int type = working(c.dtype);
  if (is_planted("output"))
    write(f.output.at(f.output.place(0, c.heads - 1, c.q_len - 1, c.value_dim - 1)), c.dtype, 2);
  if (is_planted("gap") && c.layout == 2) f.output.memory[(size_t)(c.value_dim * bytes_of(c.dtype))] = 0;
  const double relative = allowance(c, e);
  compare(c, "output", f.output.numbers(), e.output, relative, c.dtype);
  compare(c, "lse", f.lse.numbers(), e.lse, relative, type);
  if (c.seed % 3) {
    Numbers both = f.lse.numbers();
    const Numbers low = f.low.numbers();
    for (size_t i = 0; i < both.size(); ++i) {
      if (!(std::fabs(low[i]) <= 2 * rounding(type) * (1 + std::fabs(both[i]))))
        fail(c, "lse_low", "it is no rest of a rounding");
      both[i] += low[i];
    }
    compare(c, "lse + lse_low", both, e.lse, relative, type);
  }
  if (!f.output.gaps_are_whole()) fail(c, "output", "written between its rows");
  return f;
}

namespace {

/* Tables come in parts that the caller sums. */
Numbers sum_of_splits(const Rows &parts, int64_t tables, int64_t splits) {
  const Numbers all = parts.numbers();
  const size_t one = all.size() / (size_t)(tables * splits);
  Numbers sums(one * (size_t)tables, 0);
  for (size_t i = 0; i < all.size(); ++i) sums[i / (one * (size_t)splits) * one + i % one] += all[i];
  return sums;
}

} // namespace

void check_backward(const Case &c, const Expected &e, const Forwarded &f, const Rows &above, const Rows &lse_above,
                    int32_t threads) {
  const regard_problem p = handed_over(c, threads);
  const int type = working(c.dtype);
  const int64_t splits = regard_backward_splits(&p), tables = c.batch * c.heads;
  if (splits < 1) return fail(c, "backward_splits", "below 1");
  const auto table = [&](int kind, const Numbers &there, int64_t width) {
    Rows parts(kind, there.empty() ? 1 : tables, there.empty() ? 1 : splits, there.empty() ? 1 : c.distances(), width,
               0);
    parts.fill(nullptr);
    return parts;
  };
  Rows query(c.dtype, c.batch, c.heads, c.q_len, c.head_dim, (c.layout + 1) % 3);
  Rows key(c.dtype, c.batch, c.kv_heads, c.kv_len, c.head_dim, c.layout);
  Rows value(c.dtype, c.batch, c.kv_heads, c.kv_len, c.value_dim, (c.layout + 2) % 3);
  Rows met(type, c.batch, c.heads, c.q_len, c.head_dim, c.layout);
  Rows bias(type, c.bias_is_shared ? 1 : c.batch, c.heads, c.q_len, c.kv_len, 0);
  bias.fill(nullptr);
  Rows by_bias = table(REGARD_F64, c.db, 1), by_keys = table(type, c.dk, c.head_dim);
  Rows by_values = table(type, c.dv, c.value_dim);
  regard_backward_arguments a = {};
  a.output = f.output.view();
  a.grad_output = above.view();
  a.lse = f.lse.memory.get();
  a.lse_low = c.seed % 3 ? f.low.memory.get() : nullptr;
  a.grad_lse = c.options & kLseGradient ? lse_above.memory.get() : nullptr;
  a.grad_query = query.view(), a.grad_key = key.view(), a.grad_value = value.view();
  if (!c.added.empty())
    a.grad_bias = {bias.memory.get(), p.bias.batch_stride, p.bias.head_stride, p.bias.query_stride, 1};
  if (!c.db.empty()) a.grad_distance_bias = by_bias.memory.get();
  if (!c.dk.empty()) a.grad_distance_query = met.view(), a.grad_distance_keys = by_keys.memory.get();
  if (!c.dv.empty()) a.grad_distance_values = by_values.memory.get();
  a.table_splits = splits;
  const int status = regard_backward(&p, &a);
  const bool finite = query.all_finite() && key.all_finite() && value.all_finite();
  compare_status(c, "backward", status, finite && (c.added.empty() || bias.all_finite()));
  if (is_planted("gradient")) write(key.at(key.place(0, 0, c.kv_len - 1, 0)), c.dtype, 50);
  const double relative = 2 * allowance(c, e); /* scores are computed again: their errors come twice */
  compare(c, "gradient of query", query.numbers(), e.query, relative, c.dtype);
  compare(c, "gradient of key", key.numbers(), e.key, relative, c.dtype);
  compare(c, "gradient of value", value.numbers(), e.value, relative, c.dtype);
  if (!c.added.empty()) compare(c, "gradient of bias", bias.numbers(), e.bias, relative, type);
  if (!c.db.empty())
    compare(c, "gradient of distance_bias", sum_of_splits(by_bias, tables, splits), e.distance_bias, relative, type);
  if (!c.dk.empty()) {
    compare(c, "gradient of distance_query", met.numbers(), e.distance_query, relative, type);
    compare(c, "gradient of distance_keys", sum_of_splits(by_keys, tables, splits), e.distance_keys, relative, type);
  }
  if (!c.dv.empty())
    compare(c, "gradient of distance_values", sum_of_splits(by_values, tables, splits), e.distance_values, relative,
            type);
  if (!query.gaps_are_whole() || !key.gaps_are_whole() || !value.gaps_are_whole())
    fail(c, "gradients", "written between rows");
}
