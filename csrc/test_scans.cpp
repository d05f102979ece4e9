/* test_scans.cpp: the causal sum of features against plain loops in double precision. */
#include <algorithm>

#include "test_compare.h"

namespace {

struct ScanCase {
  int64_t batch, heads, length, width, directions, value_dim; /* directions: 0 where tokens are features themselves */
  bool opposites, weighted, begun;                            /* begun: there is a state before */
  uint64_t seed;

  int64_t features() const { return directions ? directions * (opposites ? 2 : 1) : width; }
  int64_t rows() const { return batch * heads; }
  /* For messages. */
  Case named() const { return sizes(REGARD_F32, 0, 0, length, features(), width, value_dim, seed); }
};

struct ScanData {
  Rows query, key, value, log, above;
  std::vector<float> projection, values, keys, scale, grad_values, grad_keys;
  regard_causal_scan scan;
};

std::vector<float> some(Random *random, int64_t count, double from, double size) {
  std::vector<float> numbers((size_t)count);
  for (float &x : numbers) x = (float)(from + size * random->number());
  return numbers;
}

Rows filled(const ScanCase &c, int64_t width, int layout, Random *random, double from, double size) {
  Rows rows(REGARD_F32, c.batch, c.heads, c.length, width, layout);
  rows.each([&](int64_t where) { write(rows.at(where), REGARD_F32, from + size * random->number()); });
  return rows;
}

ScanData make(const ScanCase &c) {
  Random random{c.seed};
  const int64_t state = c.rows() * c.features() * c.value_dim, sums = c.rows() * c.features();
  const int layout = (int)random.below(3);
  const double low = c.directions ? 0 : 2.25; /* features are not negative */
  ScanData d{filled(c, c.width, layout, &random, low, 1),
             filled(c, c.width, layout, &random, low, 1),
             filled(c, c.value_dim, layout, &random, 0, 1),
             filled(c, 1, 0, &random, 1, 3),
             filled(c, c.value_dim, 2, &random, 0, 1),
             some(&random, c.directions * c.width, 0, 0.25),
             some(&random, state, 0, c.begun),
             some(&random, sums, 2.5 * c.begun, c.begun),
             some(&random, c.rows(), 0, c.begun && c.weighted),
             some(&random, state, 0, 1),
             some(&random, sums, 0, 1),
             {}};
  d.scan = {1,
            c.opposites,
            c.batch,
            c.heads,
            c.length,
            c.width,
            c.features(),
            c.value_dim,
            d.query.view(),
            d.key.view(),
            d.value.view(),
            c.weighted ? d.log.view() : regard_rows{},
            c.directions ? d.projection.data() : nullptr,
            d.values.data(),
            d.keys.data(),
            d.scale.data()};
  return d;
}

/* ------------------------------------------------------------------------------------ the plain loops */

struct ScanExpected {
  Numbers output, values, keys; /* the state not over exp(scale) */
  Numbers query, key, value, log, values_before, keys_before;
  double query_terms = 0, key_terms = 0; /* the largest sums of sizes that the gradients are made of: they may cancel */
};

struct PlainRow {
  const ScanCase &c;
  const ScanData &d;
  int64_t row;
  int64_t n, m, w, v;
  Numbers q, k, x, logs; /* features of queries and keys, values, exp(log) */

  double token(const Rows &rows, int64_t i, int64_t e) const {
    return read(rows.at(rows.place(row / c.heads, row % c.heads, i, e)), REGARD_F32);
  }
  double direction(int64_t f, int64_t e) const {
    const double sign = f < c.directions ? 1 : -1;
    return sign * d.projection[(size_t)(f % c.directions * w + e)];
  }
  double feature(const Rows &rows, int64_t i, int64_t f) const {
    if (!c.directions) return token(rows, i, f);
    double sum = 0;
    for (int64_t e = 0; e < w; ++e) sum += direction(f, e) * token(rows, i, e);
    return std::exp(sum);
  }

  PlainRow(const ScanCase &given, const ScanData &data, int64_t which)
      : c(given), d(data), row(which), n(c.length), m(c.features()), w(c.width), v(c.value_dim) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t f = 0; f < m; ++f) q.push_back(feature(d.query, i, f)), k.push_back(feature(d.key, i, f));
      for (int64_t e = 0; e < v; ++e) x.push_back(token(d.value, i, e));
      logs.push_back(c.weighted ? std::exp(token(d.log, i, 0)) : 1);
    }
  }

  /* From gradients of features, and from the sizes of the terms of those. */
  double token_gradients(const Numbers &of_features, const Numbers &terms, const Numbers &features, Numbers *to) const {
    double largest = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t e = 0; e < w; ++e) {
        double sum = 0, size = 0;
        for (int64_t f = c.directions ? 0 : e; f < (c.directions ? m : e + 1); ++f) {
          const double factor = c.directions ? features[(size_t)(i * m + f)] * direction(f, e) : 1;
          sum += of_features[(size_t)(i * m + f)] * factor;
          size += terms[(size_t)(i * m + f)] * std::fabs(factor);
        }
        to->push_back(sum);
        largest = std::max(largest, size);
      }
    return largest;
  }

  /* `scale_after` is a unit that the library chose: the state is over its exponential, and it has no gradient. */
  void run(double scale_after, ScanExpected *to) const {
    const double unit = std::exp((double)d.scale[(size_t)row]), after = std::exp(-scale_after);
    Numbers s((size_t)(m * v)), z((size_t)m), of_q((size_t)(n * m)), of_k((size_t)(n * m)), g, t;
    Numbers q_terms((size_t)(n * m)), k_terms((size_t)(n * m));
    for (int64_t i = 0; i < m * v; ++i) s[(size_t)i] = unit * d.values[(size_t)(row * m * v + i)];
    for (int64_t f = 0; f < m; ++f) z[(size_t)f] = unit * d.keys[(size_t)(row * m + f)];
    for (int64_t i = 0; i < n; ++i) {
      double total = 0, along = 0;
      for (int64_t f = 0; f < m; ++f) {
        const double key = k[(size_t)(i * m + f)] * logs[(size_t)i];
        for (int64_t e = 0; e < v; ++e) s[(size_t)(f * v + e)] += key * x[(size_t)(i * v + e)];
        z[(size_t)f] += key;
        total += q[(size_t)(i * m + f)] * z[(size_t)f];
      }
      for (int64_t e = 0; e < v; ++e) {
        double sum = 0;
        for (int64_t f = 0; f < m; ++f) sum += q[(size_t)(i * m + f)] * s[(size_t)(f * v + e)];
        to->output.push_back(sum / total);
        g.push_back(token(d.above, i, e) / total);
        along += g.back() * to->output.back();
      }
      t.push_back(-along);
      for (int64_t f = 0; f < m; ++f) {
        double sum = t.back() * z[(size_t)f], size = std::fabs(sum);
        for (int64_t e = 0; e < v; ++e) {
          const double term = g[(size_t)(i * v + e)] * s[(size_t)(f * v + e)];
          sum += term, size += std::fabs(term);
        }
        of_q[(size_t)(i * m + f)] = sum, q_terms[(size_t)(i * m + f)] = size;
      }
    }
    to->values.insert(to->values.end(), s.begin(), s.end());
    to->keys.insert(to->keys.end(), z.begin(), z.end());

    for (int64_t i = 0; i < m * v; ++i) s[(size_t)i] = after * d.grad_values[(size_t)(row * m * v + i)];
    for (int64_t f = 0; f < m; ++f) z[(size_t)f] = after * d.grad_keys[(size_t)(row * m + f)];
    Numbers of_v((size_t)(n * v)), of_log((size_t)n);
    for (int64_t j = n - 1; j >= 0; --j)
      for (int64_t f = 0; f < m; ++f) {
        const double key = k[(size_t)(j * m + f)], query = q[(size_t)(j * m + f)], weight = logs[(size_t)j];
        double sum = 0, size = 0;
        for (int64_t e = 0; e < v; ++e) {
          double &at = s[(size_t)(f * v + e)];
          at += query * g[(size_t)(j * v + e)];
          of_v[(size_t)(j * v + e)] += weight * key * at;
          sum += at * x[(size_t)(j * v + e)], size += std::fabs(at * x[(size_t)(j * v + e)]);
        }
        sum += z[(size_t)f] += query * t[(size_t)j];
        of_k[(size_t)(j * m + f)] = weight * sum;
        k_terms[(size_t)(j * m + f)] = weight * (size + std::fabs(z[(size_t)f]));
        of_log[(size_t)j] += key * weight * sum;
      }
    to->query_terms = std::max(to->query_terms, token_gradients(of_q, q_terms, q, &to->query));
    to->key_terms = std::max(to->key_terms, token_gradients(of_k, k_terms, k, &to->key));
    to->value.insert(to->value.end(), of_v.begin(), of_v.end());
    to->log.insert(to->log.end(), of_log.begin(), of_log.end());
    for (double of_s : s) to->values_before.push_back(unit * of_s);
    for (double of_z : z) to->keys_before.push_back(unit * of_z);
  }
};

/* ------------------------------------------------------------------------------------------- comparing */

/* Sums of m products, of up to n tokens, of features whose logs are sums of w: against the largest number. */
void near(const ScanCase &c, const char *what, const Numbers &got, const Numbers &expected, double largest = 0) {
  ++checks;
  double worst = 0;
  for (size_t i = 0; i < got.size() && got.size() == expected.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    worst = std::isfinite(got[i]) ? std::max(worst, std::fabs(got[i] - expected[i])) : INFINITY;
  }
  const double may = rounding(REGARD_F32) * (double)(c.features() + c.length + 8 * c.width + 32) * largest;
  if (got.size() == expected.size() && worst <= may) return;
  char line[100];
  snprintf(line, sizeof line, "%.3g from what it should be, and may be %.3g", worst, may);
  fail(c.named(), what, line);
}

Numbers as_numbers(const std::vector<float> &given) { return Numbers(given.begin(), given.end()); }

struct ScanFound {
  Rows output, query, key, value;
  std::vector<float> normaliser, values, keys, scale, log, values_before, keys_before;
};

ScanFound run_scan(const ScanCase &c, const ScanData &d, int32_t threads) {
  const size_t state = d.values.size(), sums = d.keys.size(), tokens = (size_t)(c.rows() * c.length);
  ScanFound f{Rows(REGARD_F32, c.batch, c.heads, c.length, c.value_dim, 2),
              Rows(REGARD_F32, c.batch, c.heads, c.length, c.width, 1),
              Rows(REGARD_F32, c.batch, c.heads, c.length, c.width, 2),
              Rows(REGARD_F32, c.batch, c.heads, c.length, c.value_dim, 1),
              std::vector<float>(tokens),
              std::vector<float>(state),
              std::vector<float>(sums),
              std::vector<float>((size_t)c.rows()),
              std::vector<float>(tokens),
              std::vector<float>(state),
              std::vector<float>(sums)};
  regard_causal_scan scan = d.scan;
  scan.threads = threads;
  if (is_planted("carried")) scan.keys = d.grad_keys.data();
  if (is_planted("weighed") && c.weighted) scan.log_weight.row_stride = 0;
  const regard_causal_scan_results r{f.output.view(), f.normaliser.data(), f.values.data(), f.keys.data(),
                                     f.scale.data()};
  if (regard_causal_scan_forward(&scan, &r) != REGARD_OK) fail(c.named(), "causal_scan", "another status than 0");
  if (is_planted("normalised"))
    for (float &x : f.normaliser) x *= 1.001f;
  const regard_causal_scan_gradients a{
      f.output.view(), d.above.view(), f.normaliser.data(), d.grad_values.data(),   d.grad_keys.data(),  f.query.view(),
      f.key.view(),    f.value.view(), f.log.data(),        f.values_before.data(), f.keys_before.data()};
  if (regard_causal_scan_backward(&scan, &a) != REGARD_OK) fail(c.named(), "causal_scan_backward", "a status");
  return f;
}

bool same_bits(const ScanFound &one, const ScanFound &other) {
  const auto same = [](const std::vector<float> &a, const std::vector<float> &b) {
    return memcmp(a.data(), b.data(), a.size() * 4) == 0;
  };
  bool equal = same(one.values, other.values) && same(one.keys, other.keys) && same(one.log, other.log) &&
               same(one.values_before, other.values_before) && same(one.keys_before, other.keys_before);
  for (auto rows : {&ScanFound::output, &ScanFound::query, &ScanFound::key, &ScanFound::value})
    equal = equal && memcmp((one.*rows).memory.get(), (other.*rows).memory.get(), (size_t)(one.*rows).bytes) == 0;
  return equal;
}

void check_scan(const ScanCase &c, int32_t threads) {
  const ScanData d = make(c);
  ScanFound f = run_scan(c, d, 1), again = run_scan(c, d, threads);
  ++checks;
  if (is_planted("dealt")) again.keys[0] += 1;
  if (!same_bits(f, again)) fail(c.named(), "causal_scan", "other numbers with more threads");
  ScanExpected e;
  Numbers values = as_numbers(f.values), keys = as_numbers(f.keys);
  for (int64_t row = 0; row < c.rows(); ++row) {
    const double scale = f.scale[(size_t)row];
    PlainRow(c, d, row).run(scale, &e);
    const int64_t state = c.features() * c.value_dim;
    for (int64_t i = 0; i < state; ++i) values[(size_t)(row * state + i)] *= std::exp(scale);
    for (int64_t i = 0; i < c.features(); ++i) keys[(size_t)(row * c.features() + i)] *= std::exp(scale);
  }
  near(c, "output", f.output.numbers(), e.output);
  near(c, "values after", values, e.values);
  near(c, "keys after", keys, e.keys);
  near(c, "gradient of query", f.query.numbers(), e.query, e.query_terms);
  near(c, "gradient of key", f.key.numbers(), e.key, e.key_terms);
  near(c, "gradient of value", f.value.numbers(), e.value);
  if (c.weighted) near(c, "gradient of log weight", as_numbers(f.log), e.log);
  if (c.begun) near(c, "gradient of values before", as_numbers(f.values_before), e.values_before);
  if (c.begun) near(c, "gradient of keys before", as_numbers(f.keys_before), e.keys_before);
  for (const Rows *rows : {&f.output, &f.query, &f.key, &f.value})
    if (!rows->gaps_are_whole()) fail(c.named(), "causal_scan", "it wrote between rows");
}
} // namespace

void check_scans(int64_t share) {
  const int64_t lengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 200}, widths[] = {1, 3, 16, 33, 64};
  Random random{7};
  uint64_t number = 0;
  for (int i = 0; i < 40; ++i) {
    const int kind = i % 4; /* features, weighted features, a projection, one with opposites */
    ScanCase c{1 + random.below(2),
               1 + random.below(3),
               lengths[i % 10],
               widths[random.below(5)],
               kind < 2 ? 0 : 1 + random.below(40),
               widths[random.below(5)],
               kind == 3,
               kind > 0,
               i % 3 == 0,
               9000 + ++number};
    if (i >= 36) c.batch = c.heads = 1, c.length = 700 + 11 * i; /* cut into segments */
    if (is_taken(c.seed, share)) for_each_isa(c.named(), [&](int32_t) { check_scan(c, i % 2 ? 4 : 7); });
  }
}
