/* test_observe.cpp: tiles of the weights, and what the weights are like. */
#include <numeric>

#include "test_compare.h"

namespace {

/* Some of 0 to end, ascending: all, every other one, or few. */
std::vector<int64_t> some_of(Random *random, int64_t end) {
  const int64_t kind = random->below(3), rarity = kind == 0 ? 1 : kind == 1 ? 2 : 14;
  std::vector<int64_t> some;
  for (int64_t i = 0; i < end; ++i)
    if (random->below(rarity) == 0) some.push_back(i);
  if (some.empty()) some.push_back(random->below(end));
  return some;
}

struct Chosen {
  std::vector<int64_t> heads, rows, cols;

  Chosen(const Case &c, Random *random) : rows(some_of(random, c.q_len)), cols(some_of(random, c.kv_len)) {
    for (int64_t i = random->below(c.heads + 1); i >= 0; --i) heads.push_back(random->below(c.heads));
  }
  /* take(row of the problem) in the order in which rows are written. */
  template <class Take>
  void each(const Case &c, Take take) const {
    for (int64_t b = 0; b < c.batch; ++b)
      for (int64_t h : heads)
        for (int64_t i : rows) take((b * c.heads + h) * c.q_len + i);
  }
};

struct Tile {
  Rows top, rest, weights;
};

/* One call; `given` has the normalisers, or they are found. */
Tile run_weights(const Case &c, const Chosen &chosen, const Tile *given, bool wants_found, int32_t threads,
                 int *status) {
  const int type = working(c.dtype);
  const int64_t heads = (int64_t)chosen.heads.size(), rows = (int64_t)chosen.rows.size(),
                cols = (int64_t)chosen.cols.size();
  Tile to{Rows(type, c.batch, heads, rows, 1, 0), Rows(type, c.batch, heads, rows, 1, 0),
          Rows(type, c.batch, heads, rows, cols, 0)};
  std::vector<int64_t> planted_cols = chosen.cols;
  if (is_planted("column") &&
      (cols == 1 ? planted_cols[0] > 0 : planted_cols[(size_t)cols - 2] + 1 < planted_cols.back()))
    --planted_cols.back();
  const regard_problem p = handed_over(c, threads);
  regard_weights_arguments a = {};
  a.heads = chosen.heads.data(), a.rows = chosen.rows.data(), a.cols = planted_cols.data();
  a.head_count = heads, a.row_count = rows, a.col_count = cols;
  if (given) a.lse = given->top.memory.get(), a.lse_low = given->rest.bytes ? given->rest.memory.get() : nullptr;
  if (wants_found) a.found_top = to.top.memory.get(), a.found_rest = to.rest.memory.get();
  a.weights = to.weights.memory.get();
  *status = regard_weights(&p, &a);
  if (is_planted("normaliser")) write(to.rest.at(to.rest.bytes / bytes_of(type) - 1), type, 0.3);
  return to;
}

/* The log of the normaliser in two numbers, as forward gave it; the first of them finite. */
Tile from_forward(const Case &c, const Chosen &chosen, const Forwarded &f) {
  const int type = working(c.dtype);
  const int64_t heads = (int64_t)chosen.heads.size(), rows = (int64_t)chosen.rows.size();
  Tile given{Rows(type, c.batch, heads, rows, 1, 0), Rows(), Rows()};
  if (c.seed % 3) given.rest = Rows(type, c.batch, heads, rows, 1, 0); /* as `run_forward` asks for lse_low */
  const Numbers lse = f.lse.numbers(), low = f.low.numbers();
  Numbers top, rest;
  chosen.each(c, [&](int64_t row) {
    const bool empty = lse[(size_t)row] == -INFINITY;
    top.push_back(empty ? 0 : lse[(size_t)row]);
    rest.push_back(empty ? -INFINITY : low[(size_t)row]);
  });
  given.top.put(top);
  if (given.rest.bytes) given.rest.put(rest);
  return given;
}

} // namespace

void check_weights(const Case &c, const Expected &e, const Forwarded &forwarded) {
  Random random{c.seed + 11};
  const Chosen chosen(c, &random);
  const double relative = error_of_weights(c, e);
  const int type = working(c.dtype);
  Sums expected, normalisers;
  chosen.each(c, [&](int64_t row) {
    normalisers.push_back(e.lse[(size_t)row]);
    for (int64_t key : chosen.cols) {
      const double weight = e.weight(c, row, key);
      expected.push_back({weight, weight});
    }
  });
  int status;
  const Tile found = run_weights(c, chosen, nullptr, true, 1, &status);
  if (status != REGARD_OK) fail(c, "weights", "another status than 0");
  compare(c, "weights", found.weights.numbers(), expected, relative, type);
  Numbers logs = found.top.numbers();
  const Numbers rests = found.rest.numbers();
  for (size_t i = 0; i < logs.size(); ++i) {
    if (!std::isfinite(logs[i])) fail(c, "found_top", "it is not finite");
    logs[i] += rests[i];
  }
  compare(c, "found_top + found_rest", logs, normalisers, relative, type);
  if (random.below(2)) {
    const Tile again = run_weights(c, chosen, &found, false, 3, &status);
    compare(c, "weights by what was found", again.weights.numbers(), expected, relative, type);
  } else {
    const Tile given = from_forward(c, chosen, forwarded);
    const Tile again = run_weights(c, chosen, &given, true, 3, &status);
    compare(c, "weights by forward's lse", again.weights.numbers(), expected, relative + allowance(c, e), type);
  }
  if (status != REGARD_OK) fail(c, "weights", "another status than 0, with an lse");
}

/* ---------------------------------------------------------------------------------------- statistics */

namespace {

enum { kEntropy, kMaxLogit, kSinkShare, kDistance, kReceived, kPooled, kTopWeights, kOutputs };
const char *const names[kOutputs] = {"entropy",  "max_logit", "sink_share", "distance",
                                     "received", "pooled",    "top_weights"};

struct Statistics {
  Rows of[kOutputs];
  std::vector<int64_t> top_keys;
};

struct Wanted {
  int64_t top_count, side;
  unsigned outputs; /* a bit for each */
};

Statistics run_statistics(const Case &c, const Wanted &wanted, int32_t threads, int *status) {
  const int type = working(c.dtype);
  Statistics s;
  const int64_t lengths[kOutputs] = {c.q_len, c.q_len, c.q_len, c.q_len, c.kv_len, wanted.side, c.q_len};
  void *to[kOutputs] = {};
  for (int i = 0; i < kOutputs; ++i) {
    if (!(wanted.outputs >> i & 1) || (i == kTopWeights && wanted.top_count == 0)) continue;
    s.of[i] = Rows(type, c.batch, c.heads, lengths[i],
                   i == kPooled       ? wanted.side
                   : i == kTopWeights ? wanted.top_count
                                      : 1,
                   0);
    to[i] = s.of[i].memory.get();
  }
  if (to[kTopWeights]) s.top_keys.assign((size_t)(c.batch * c.heads * c.q_len * wanted.top_count), -1);
  const regard_problem p = handed_over(c, threads);
  regard_statistics_results r = {};
  r.entropy = to[kEntropy], r.max_logit = to[kMaxLogit], r.sink_share = to[kSinkShare], r.distance = to[kDistance];
  r.received = to[kReceived], r.pooled = to[kPooled], r.top_weights = to[kTopWeights];
  r.top_keys = s.top_keys.data();
  r.top_count = to[kTopWeights] ? wanted.top_count : 0;
  r.pooled_side = to[kPooled] ? wanted.side : 0;
  *status = regard_statistics(&p, &r);
  for (int i = 0; i < kOutputs; ++i)
    if (is_planted(names[i]) && to[i]) write(s.of[i].at(s.of[i].bytes / bytes_of(type) - 1), type, 0.37);
  if (is_planted("top_keys") && s.top_keys.size() > 1) std::swap(s.top_keys[0], s.top_keys.back());
  if (is_planted("threads") && threads > 1 && to[kReceived]) s.of[kReceived].memory[0] ^= 1;
  return s;
}

void expect_statistics(const Case &c, const Expected &e, int64_t side, Sums *to) {
  const int64_t heads = c.batch * c.heads, rows = heads * c.q_len;
  to[kReceived].resize((size_t)(heads * c.kv_len));
  to[kPooled].resize((size_t)(heads * side * side));
  Numbers queries((size_t)side, 0); /* in each bin */
  for (int64_t i = 0; i < c.q_len; ++i) ++queries[(size_t)(i * side / c.q_len)];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t head = row / c.q_len, i = row % c.q_len, bin = i * side / c.q_len;
    Sum surprise, away;
    double most = -INFINITY;
    for (int64_t j = 0; j < c.kv_len; ++j) {
      const double score = e.scores[(size_t)(row * c.kv_len + j)], weight = e.weight(c, row, j);
      most = std::fmax(most, score);
      if (score == -INFINITY) continue;
      const double information = e.lse[(size_t)row].value - score;
      surprise.add(weight * information, weight * (1 + std::fabs(information)));
      away.add(weight * (double)std::abs(j - i), weight * (double)std::abs(j - i));
      to[kReceived][(size_t)(head * c.kv_len + j)].add(weight, weight);
      const double share = weight / queries[(size_t)bin];
      to[kPooled][(size_t)((head * side + bin) * side + j * side / c.kv_len)].add(share, share);
    }
    const double first = e.weight(c, row, 0);
    to[kEntropy].push_back(surprise);
    to[kMaxLogit].push_back({most, 1});
    to[kSinkShare].push_back({first, first});
    to[kDistance].push_back(away);
  }
}

/* May key `a` be listed before key `b`? Scores that are equal here are equal there where nothing is added to them. */
bool in_order(const Case &c, const double *scores, int64_t a, int64_t b, double error) {
  const bool exact = (c.options & ~(kSink | kDropout | kLseGradient | kDistanceValues)) == 0;
  if (exact && scores[a] == scores[b]) return a < b;
  return scores[a] >= scores[b] - error;
}

void check_top_of_row(const Case &c, const double *scores, const int64_t *keys, const double *weights, int64_t count,
                      double error) {
  std::vector<char> listed((size_t)c.kv_len, 0);
  const int64_t visible = c.kv_len - std::count(scores, scores + c.kv_len, -INFINITY), found = std::min(visible, count);
  for (int64_t i = 0; i < count; ++i) {
    if (keys[i] < 0 || keys[i] >= c.kv_len || listed[(size_t)keys[i]])
      return fail(c, "top_keys", "outside, or listed twice");
    listed[(size_t)keys[i]] = 1;
    if ((scores[keys[i]] != -INFINITY) != (i < found)) return fail(c, "top_keys", "those without weight come last");
    if (i >= found && weights[i] != 0) return fail(c, "top_weights", "filled up with another weight than 0");
    if (i > 0 && i < found && !in_order(c, scores, keys[i - 1], keys[i], error))
      return fail(c, "top_keys", "not in order");
  }
  for (int64_t key = 0; found > 0 && key < c.kv_len; ++key)
    if (!listed[(size_t)key] && scores[key] != -INFINITY && !in_order(c, scores, keys[found - 1], key, error))
      return fail(c, "top_keys", "a key with more weight is left out");
}

void check_top(const Case &c, const Expected &e, const Statistics &s, int64_t count, double relative) {
  ++checks;
  const Numbers weights = s.of[kTopWeights].numbers();
  Sums expected;
  for (size_t i = 0; i < s.top_keys.size(); ++i) {
    const int64_t key = s.top_keys[i];
    const double weight = key < 0 || key >= c.kv_len ? NAN : e.weight(c, (int64_t)i / count, key);
    expected.push_back({weight, weight});
  }
  compare(c, "top_weights", weights, expected, relative, working(c.dtype));
  for (int64_t row = 0; row < c.batch * c.heads * c.q_len; ++row)
    check_top_of_row(c, &e.scores[(size_t)(row * c.kv_len)], &s.top_keys[(size_t)(row * count)],
                     &weights[(size_t)(row * count)], count, relative);
}

} // namespace

void check_statistics(const Case &c, const Expected &e) {
  Random random{c.seed + 23};
  Wanted wanted{random.below(std::min<int64_t>(64, c.kv_len) + 1), 1 + random.below(random.below(4) ? 12 : 150), ~0u};
  const double relative = error_of_weights(c, e);
  int status;
  const Statistics s = run_statistics(c, wanted, 1, &status);
  if (status != REGARD_OK) return fail(c, "statistics", "another status than 0");
  Sums expected[kOutputs];
  expect_statistics(c, e, wanted.side, expected);
  for (int i = 0; i < kTopWeights; ++i)
    compare(c, names[i], s.of[i].numbers(), expected[i], relative + (double)c.q_len * rounding(REGARD_F64),
            working(c.dtype));
  if (wanted.top_count) check_top(c, e, s, wanted.top_count, relative);

  wanted.outputs = (unsigned)random.bits(); /* and not all of them */
  const Statistics other = run_statistics(c, wanted, 3, &status);
  if (status != REGARD_OK) fail(c, "statistics", "another status than 0, with threads");
  ++checks;
  for (int i = 0; i < kOutputs; ++i)
    if (other.of[i].bytes && memcmp(s.of[i].memory.get(), other.of[i].memory.get(), (size_t)s.of[i].bytes) != 0)
      fail(c, names[i], "another number of threads gives another result");
  if (!other.top_keys.empty() && other.top_keys != s.top_keys) fail(c, "top_keys", "other threads, other keys");
}
