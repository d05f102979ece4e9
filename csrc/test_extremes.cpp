/* test_extremes.cpp: NaN and Inf in keys, values and queries, and numbers that the output type has not. */
#include "test_compare.h"

namespace {

double some_poison(Random *random) {
  const double kinds[3] = {NAN, INFINITY, -INFINITY};
  return kinds[random->below(3)];
}

/* Poison in one element, or in all, of this row of every head. */
void poison_row(const Rows &rows, int64_t row, Random *random) {
  const bool all = random->below(2);
  const int64_t one = random->below(rows.width);
  for (int64_t b = 0; b < rows.batch; ++b)
    for (int64_t h = 0; h < rows.heads; ++h)
      for (int64_t i = 0; i < rows.width; ++i)
        if (all || i == one) write(rows.at(rows.place(b, h, row, i)), rows.dtype, some_poison(random));
}

bool row_sees(const Case &c, const Expected &e, int64_t row, int64_t key) {
  return e.scores[(size_t)(row * c.kv_len + key)] != -INFINITY;
}

/* Compare the rows of which `clean` is true, each of so many numbers. */
void compare_rows(const Case &c, const char *what, const Numbers &got, const Sums &expected,
                  const std::vector<char> &clean, double relative, int dtype) {
  Numbers some;
  Sums of_them;
  const size_t width = got.size() / clean.size();
  for (size_t i = 0; i < got.size(); ++i)
    if (clean[i / width]) some.push_back(got[i]), of_them.push_back(expected[i]);
  compare(c, what, some, of_them, relative, dtype);
}

/* --------------------------------------------------------------------------- what nobody may attend to */

/* The keys of a hole in every mask are poisoned: only what is multiplied by the zeros there may be NaN. */
void check_hole(Case *given, Random *random) {
  given->hole_first = random->below(given->kv_len);
  given->hole_end = std::min(given->kv_len, given->hole_first + 1 + random->below(40));
  given->build();
  const Case &c = *given;
  Rows above(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, c.layout);
  const Gradients g{above.fill(random), {}};
  const Expected e = expect(c, g);
  for (int64_t key = c.hole_first; key < c.hole_end; ++key) poison_row(c.key, key, random);
  if (is_planted("poison"))
    for (int64_t key = 0; key < c.kv_len; ++key) poison_row(c.key, key, random);
  for_each_isa(c, [&](int32_t isa) {
    const int32_t threads = isa % 2 ? 3 : 1;
    const Forwarded f = check_forward(c, e, threads);
    check_weights(c, e, f);
    check_statistics(c, e);
    const int64_t keys = c.batch * c.kv_heads * c.kv_len;
    Rows query(c.dtype, c.batch, c.heads, c.q_len, c.head_dim, 0),
        key(c.dtype, c.batch, c.kv_heads, c.kv_len, c.head_dim, 0);
    Rows value(c.dtype, c.batch, c.kv_heads, c.kv_len, c.value_dim, 0);
    regard_problem p = handed_over(c, threads);
    regard_backward_arguments a = {};
    a.output = f.output.view(), a.grad_output = above.view(), a.lse = f.lse.memory.get();
    a.grad_query = query.view(), a.grad_key = key.view(), a.grad_value = value.view();
    a.table_splits = regard_backward_splits(&p);
    const int status = regard_backward(&p, &a);
    compare_status(c, "backward past a hole", status, query.all_finite() && key.all_finite() && value.all_finite());
    std::vector<char> outside((size_t)keys);
    for (int64_t i = 0; i < keys; ++i) outside[(size_t)i] = !c.in_hole(i % c.kv_len);
    compare_rows(c, "gradient of key, outside", key.numbers(), e.key, outside, 2 * allowance(c, e), c.dtype);
    compare(c, "gradient of value", value.numbers(), e.value, 2 * allowance(c, e), c.dtype);
  });
}

/* ------------------------------------------------------------------------------ what some may attend to */

/* Rows that see no poison are as they would be without it; the status says what was written. */
void check_seen(Case *given, Random *random) {
  given->build();
  const int64_t bad_key = random->below(given->kv_len), bad_query = random->below(given->q_len);
  if (!given->added.empty() && random->below(2)) { /* forbidden by the bias */
    for (size_t i = (size_t)bad_key; i < given->added.size(); i += (size_t)given->kv_len) given->added[i] = -INFINITY;
    given->bias.put(given->added);
  }
  const Case &c = *given;
  const Expected e = expect(c, {Numbers((size_t)(c.batch * c.heads * c.q_len * c.value_dim), 0), {}});
  std::vector<char> clean((size_t)(c.batch * c.heads * c.q_len), 1);
  const bool in_queries = random->below(3) == 0;
  if (in_queries)
    poison_row(c.query, bad_query, random);
  else
    write(c.key.at(c.key.place(c.batch - 1, 0, bad_key, 0)), c.dtype, some_poison(random));
  const int64_t group = c.heads / c.kv_heads;
  for (int64_t row = 0; row < (int64_t)clean.size(); ++row) {
    const int64_t b = row / c.q_len / c.heads, h = row / c.q_len % c.heads;
    if (in_queries)
      clean[(size_t)row] = row % c.q_len != bad_query;
    else
      clean[(size_t)row] = b != c.batch - 1 || h / group != 0 || !row_sees(c, e, row, bad_key);
  }
  for_each_isa(c, [&](int32_t isa) {
    int status; /* `run_forward` compares it with the output */
    const Forwarded f = run_forward(c, isa % 2 ? 3 : 1, &status);
    if (is_planted("unclean")) write(f.output.at(f.output.place(0, 0, 0, 0)), c.dtype, NAN);
    compare_rows(c, "output of rows without poison", f.output.numbers(), e.output, clean, allowance(c, e), c.dtype);
    compare_rows(c, "lse of rows without poison", f.lse.numbers(), e.lse, clean, allowance(c, e), working(c.dtype));
  });
}

/* What looks at the weights must tell of NaN in a key that is attended to; the values are none of its business. */
void check_observed(Case *given, Random *random) {
  given->build();
  const Case &c = *given;
  const Expected e = expect(c, {Numbers((size_t)(c.batch * c.heads * c.q_len * c.value_dim), 0), {}});
  const int type = working(c.dtype);
  for (int64_t key = 0; key < c.kv_len; ++key) poison_row(c.value, key, random);
  int64_t bad_row = -1, bad_key = 0; /* the first pair of the last head that may attend */
  for (int64_t i = 0; bad_row < 0 && i < c.q_len * c.kv_len; ++i)
    if (row_sees(c, e, (c.batch * c.heads - 1) * c.q_len + i / c.kv_len, i % c.kv_len))
      bad_row = i / c.kv_len, bad_key = i % c.kv_len;
  if (bad_row < 0) return;
  for_each_isa(c, [&](int32_t) {
    Rows lse(type, c.batch, c.heads, c.q_len, 1, 0), unused(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, 0);
    const Forwarded forwarded{std::move(unused), std::move(lse), Rows(type, c.batch, c.heads, c.q_len, 1, 0)};
    const_cast<Rows &>(forwarded.low).fill(nullptr);
    Numbers logs;
    for (const Sum &sum : e.lse) logs.push_back(sum.value);
    const_cast<Rows &>(forwarded.lse).put(logs);
    check_weights(c, e, forwarded);
    check_statistics(c, e);
  });
  write(c.key.at(c.key.place(c.batch - 1, c.kv_heads - 1, bad_key, 0)), c.dtype, NAN);
  for_each_isa(c, [&](int32_t isa) {
    const regard_problem p = handed_over(c, isa % 2 ? 3 : 1);
    Rows top(type, c.batch, 1, 1, 1, 0), rest(type, c.batch, 1, 1, 1, 0), weights(type, c.batch, 1, 1, 1, 0);
    Rows entropy(type, c.batch, c.heads, c.q_len, 1, 0);
    const int64_t head = c.heads - 1;
    regard_weights_arguments a = {};
    a.heads = &head, a.rows = &bad_row, a.cols = &bad_key;
    a.head_count = a.row_count = a.col_count = 1;
    a.weights = weights.memory.get(), a.found_top = top.memory.get(), a.found_rest = rest.memory.get();
    checks += 3;
    const bool hidden = is_planted("hidden");
    if (hidden || regard_weights(&p, &a) != REGARD_NOT_FINITE) fail(c, "weights", "NaN in a chosen row is not told of");
    a.lse = top.memory.get(), a.lse_low = rest.memory.get();
    top.fill(nullptr), rest.fill(nullptr);
    a.found_top = a.found_rest = nullptr;
    if (hidden || regard_weights(&p, &a) != REGARD_NOT_FINITE) fail(c, "weights", "NaN beside an lse is not told of");
    regard_statistics_results r = {};
    r.entropy = entropy.memory.get();
    if (hidden || regard_statistics(&p, &r) != REGARD_NOT_FINITE) fail(c, "statistics", "NaN is not told of");
  });
}

/* ------------------------------------------------------------------------- numbers that are too large */

/* Sums that the working type holds and the output type does not: what is written is Inf, and the status says so. */
void check_overflow(int dtype, double large, double by_distance) {
  Case c = sizes(dtype, 0, kDistanceValues, 70, 1, 4, 3, 1);
  c.batch = c.heads = c.kv_heads = 1;
  c.build();
  const Numbers same((size_t)(c.q_len * c.value_dim), large);
  c.value.put(Numbers((size_t)c.value_dim, large));
  c.distance_values.put(Numbers((size_t)(c.distances() * c.value_dim), by_distance));
  Rows above(c.dtype, 1, 1, c.q_len, c.value_dim, 0);
  above.put(same);
  for_each_isa(c, [&](int32_t) {
    int status; /* `run_forward` compares it with the output */
    const Forwarded f = run_forward(c, 1, &status);
    if (f.output.all_finite()) fail(c, "forward", "a sum that cannot be written is not infinite");
    regard_problem p = handed_over(c, 1);
    p.distance_values = {}; /* and the gradient of the value is the sum of 70 large numbers */
    Rows output(c.dtype, 1, 1, c.q_len, c.value_dim, 0), lse(working(c.dtype), 1, 1, c.q_len, 1, 0);
    const regard_forward_results r{output.view(), lse.memory.get(), nullptr};
    compare_status(c, "forward without the table", regard_forward(&p, &r), output.all_finite());
    output.fill(nullptr); /* or its product with the gradient would be too large too */
    Rows value(c.dtype, 1, 1, c.kv_len, c.value_dim, 0);
    regard_backward_arguments a = {};
    a.output = output.view(), a.grad_output = above.view(), a.lse = lse.memory.get();
    a.grad_value = value.view();
    a.table_splits = 1;
    const int backward = regard_backward(&p, &a);
    if (value.all_finite()) fail(c, "backward", "a sum that cannot be written is not infinite");
    compare_status(c, "backward with large numbers", backward, value.all_finite());
  });
}

/* Only the gradient of the bias is wanted, or of a table, and it is NaN. */
void check_only(int option) {
  Case c = sizes(REGARD_F32, 0, option, 20, 30, 4, 3, 6);
  c.build();
  write(c.value.at(c.value.place(0, 0, 7, 0)), c.dtype, NAN);
  Rows above(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, 0);
  Random random{9};
  above.fill(&random);
  const int type = working(c.dtype);
  for_each_isa(c, [&](int32_t) {
    int status;
    const Forwarded f = run_forward(c, 1, &status);
    const regard_problem p = handed_over(c, 1);
    Rows bias(type, c.bias_is_shared ? 1 : c.batch, c.heads, c.q_len, c.kv_len, 0);
    Rows by_bias(REGARD_F64, c.batch, c.heads, c.distances(), 1, 0),
        by_keys(type, c.batch, c.heads, c.distances(), c.head_dim, 0);
    Rows by_values(type, c.batch, c.heads, c.distances(), c.value_dim, 0);
    for (Rows *rows : {&bias, &by_bias, &by_keys, &by_values}) rows->fill(nullptr);
    regard_backward_arguments a = {};
    a.output = f.output.view(), a.grad_output = above.view(), a.lse = f.lse.memory.get();
    if (option == kBias)
      a.grad_bias = {bias.memory.get(), p.bias.batch_stride, p.bias.head_stride, p.bias.query_stride, 1};
    if (option == kDistanceBias) a.grad_distance_bias = by_bias.memory.get();
    if (option == kDistanceKeys) a.grad_distance_keys = by_keys.memory.get();
    if (option == kDistanceValues) a.grad_distance_values = by_values.memory.get();
    a.table_splits = 1;
    status = regard_backward(&p, &a);
    const bool all_finite = bias.all_finite() && by_bias.all_finite() && by_keys.all_finite() && by_values.all_finite();
    compare_status(c, "backward of one alone", status, all_finite);
  });
}

} // namespace

void check_extremes(int64_t share) {
  const int masks[] = {kIntervals, kWords, kTiles, kBand | kIntervals, kBand | kWords};
  const int options[] = {0, 0, kBias, kSoftcap, kSink, kDistanceBias, kBias | kSoftcap};
  uint64_t number = 0;
  Random random{8};
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (int i = 0; i < 30; ++i) {
      const bool few = i % 3 == 0; /* queries, with a path of their own */
      const int64_t q_len = 1 + random.below(few ? 4 : 140), kv_len = 2 + random.below(few ? 600 : 150);
      Case c = sizes(dtype, masks[random.below(5)], options[random.below(7)], q_len, kv_len, 1 + random.below(40),
                     1 + random.below(40), 6000 + ++number);
      if (few) c.most_intervals = 1, c.mask = kIntervals, c.options = 0;
      if (!is_taken(c.seed, share)) continue;
      if (i % 5 < 2)
        check_hole(&c, &random);
      else if (i % 5 < 4)
        check_seen(&c, &random);
      else
        check_observed(&c, &random);
    }
  }
  check_overflow(REGARD_F16, 60000, 60000);
  check_overflow(REGARD_BF16, std::ldexp(1.0, 127), std::ldexp(1.0, 127) - std::ldexp(1.0, 118));
  check_overflow(REGARD_F32, std::ldexp(1.0, 127), std::ldexp(1.0, 127));
  check_overflow(REGARD_F64, std::ldexp(1.0, 1023), std::ldexp(1.0, 1023));
  for (int option : {(int)kBias, (int)kDistanceBias, (int)kDistanceKeys, (int)kDistanceValues}) check_only(option);
}
