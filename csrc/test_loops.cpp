/* test_loops.cpp: attention and its gradients, one pair after the other, in double precision. */
#include "test_compare.h"

namespace {

double dot(const double *a, const double *b, int64_t n, double *size) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += a[i] * b[i];
    *size += std::fabs(a[i] * b[i]);
  }
  return sum;
}

void add_row(Sum *to, double factor, double factor_size, const double *row, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i].add(factor * row[i], factor_size * std::fabs(row[i]));
}

/* One query of one head: weights, output, and its part in every gradient. */
void expect_row(const Case &c, const Gradients &g, int64_t b, int64_t h, int64_t i, Expected *e) {
  const regard_problem &p = c.problem;
  const int64_t row = (b * c.heads + h) * c.q_len + i, kv_head = h / (c.heads / c.kv_heads);
  const double *q = &c.q[(size_t)(row * c.head_dim)], *met = c.dq.empty() ? nullptr : &c.dq[(size_t)(row * c.head_dim)];
  const double *above = &g.output[(size_t)(row * c.value_dim)];
  const double minus_infinity = -INFINITY;
  double *scores = &e->scores[(size_t)(row * c.kv_len)];
  Numbers slopes((size_t)c.kv_len, 0);
  double highest = minus_infinity;
  for (int64_t j = 0; j < c.kv_len; ++j) {
    if (!c.allowed(b, h, i, j)) continue;
    const int64_t distance = h * c.distances() + j - i + p.distance_offset;
    double size = 0;
    double score = dot(q, &c.k[(size_t)(((b * c.kv_heads + kv_head) * c.kv_len + j) * c.head_dim)], c.head_dim, &size);
    if (met) score += dot(met, &c.dk[(size_t)(distance * c.head_dim)], c.head_dim, &size);
    score *= p.scale;
    size *= p.scale;
    slopes[(size_t)j] = p.scale;
    if (p.softcap != 0) {
      const double bent = std::tanh(score / p.softcap);
      slopes[(size_t)j] *= 1 - bent * bent;
      score = p.softcap * bent;
    }
    if (!c.added.empty())
      score += c.added[(size_t)((((c.bias_is_shared ? 0 : b) * c.heads + h) * c.q_len + i) * c.kv_len + j)];
    if (!c.db.empty()) score += c.db[(size_t)distance];
    scores[j] = score;
    highest = std::fmax(highest, score);
    if (score != minus_infinity) e->largest_score = std::fmax(e->largest_score, size + std::fabs(score));
  }
  e->lse[(size_t)row].value = minus_infinity;
  if (highest == minus_infinity) return;
  if (!c.sinks.empty()) highest = std::fmax(highest, c.sinks[(size_t)h]);
  double sum = c.sinks.empty() ? 0 : std::exp(c.sinks[(size_t)h] - highest);
  for (int64_t j = 0; j < c.kv_len; ++j) sum += std::exp(scores[j] - highest);
  const double lse = highest + std::log(sum);
  e->lse[(size_t)row] = {lse, 1};

  /* The mean of what reaches the weights, which every gradient of a score has subtracted. */
  Numbers reaching((size_t)c.kv_len), reaching_size((size_t)c.kv_len);
  double mean = 0, mean_size = 0;
  for (int64_t j = 0; j < c.kv_len; ++j) {
    if (scores[j] == minus_infinity) continue;
    const double weight = std::exp(scores[j] - lse), kept = c.kept(b, h, i, j);
    const int64_t distance = h * c.distances() + j - i + p.distance_offset;
    const int64_t key = (b * c.kv_heads + kv_head) * c.kv_len + j;
    const double *value = &c.v[(size_t)(key * c.value_dim)];
    const double *far = c.dv.empty() ? nullptr : &c.dv[(size_t)(distance * c.value_dim)]; /* the table's value */
    add_row(&e->output[(size_t)(row * c.value_dim)], weight * kept, weight * kept, value, c.value_dim);
    if (far) add_row(&e->output[(size_t)(row * c.value_dim)], weight * kept, weight * kept, far, c.value_dim);
    add_row(&e->value[(size_t)(key * c.value_dim)], weight * kept, weight * kept, above, c.value_dim);
    if (far)
      add_row(&e->distance_values[(size_t)((b * c.heads * c.distances() + distance) * c.value_dim)], weight * kept,
              weight * kept, above, c.value_dim);
    reaching[(size_t)j] = dot(above, value, c.value_dim, &reaching_size[(size_t)j]);
    if (far) reaching[(size_t)j] += dot(above, far, c.value_dim, &reaching_size[(size_t)j]);
    reaching[(size_t)j] *= kept;
    reaching_size[(size_t)j] *= kept;
    mean += weight * reaching[(size_t)j];
    mean_size += weight * reaching_size[(size_t)j];
  }
  const double from_lse = g.lse.empty() ? 0 : g.lse[(size_t)row];
  for (int64_t j = 0; j < c.kv_len; ++j) {
    if (scores[j] == minus_infinity) continue;
    const double weight = std::exp(scores[j] - lse);
    const int64_t distance = h * c.distances() + j - i + p.distance_offset,
                  in_sample = b * c.heads * c.distances() + distance;
    const int64_t key = (b * c.kv_heads + kv_head) * c.kv_len + j;
    const double score = weight * (reaching[(size_t)j] - mean + from_lse);
    const double size = weight * (reaching_size[(size_t)j] + mean_size + std::fabs(from_lse));
    const double slope = slopes[(size_t)j];
    if (!c.added.empty())
      e->bias[(size_t)((((c.bias_is_shared ? 0 : b) * c.heads + h) * c.q_len + i) * c.kv_len + j)].add(score, size);
    if (!c.db.empty()) e->distance_bias[(size_t)in_sample].add(score, size);
    /* A slope may be near 0 by cancellation: its error is relative to the scale. */
    add_row(&e->query[(size_t)(row * c.head_dim)], score * slope, size * p.scale, &c.k[(size_t)(key * c.head_dim)],
            c.head_dim);
    add_row(&e->key[(size_t)(key * c.head_dim)], score * slope, size * p.scale, q, c.head_dim);
    if (!met) continue;
    add_row(&e->distance_query[(size_t)(row * c.head_dim)], score * slope, size * p.scale,
            &c.dk[(size_t)(distance * c.head_dim)], c.head_dim);
    add_row(&e->distance_keys[(size_t)(in_sample * c.head_dim)], score * slope, size * p.scale, met, c.head_dim);
  }
}

} // namespace

Expected expect(const Case &c, const Gradients &g) {
  Expected e;
  const int64_t rows = c.batch * c.heads * c.q_len, keys = c.batch * c.kv_heads * c.kv_len;
  const int64_t table = c.batch * c.heads * c.distances();
  e.output.resize((size_t)(rows * c.value_dim));
  e.lse.resize((size_t)rows);
  e.scores.assign((size_t)(rows * c.kv_len), -INFINITY);
  e.query.resize((size_t)(rows * c.head_dim));
  e.key.resize((size_t)(keys * c.head_dim));
  e.value.resize((size_t)(keys * c.value_dim));
  e.bias.resize(c.added.size());
  if (!c.db.empty()) e.distance_bias.resize((size_t)table);
  if (!c.dk.empty())
    e.distance_query.resize((size_t)(rows * c.head_dim)), e.distance_keys.resize((size_t)(table * c.head_dim));
  if (!c.dv.empty()) e.distance_values.resize((size_t)(table * c.value_dim));
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = 0; i < c.q_len; ++i) expect_row(c, g, b, h, i, &e);
  return e;
}
