/* test_kernels.cpp: the exported functions, without Python, against plain loops in double precision.
 *
 *   test_kernels                  every instruction set of this machine, one thread and several
 *   test_kernels --plant NAME     with a fault put in between: has to fail
 *   test_kernels --few            every tenth case
 *
 * A case is sizes, a mask and options. The numbers put in are exact in every type. The mask is read pair by pair, as
 * regard.h defines it. Every buffer ends where its last number does, so that a sanitizer sees one read too many, and
 * the gaps between rows must stay as they were.
 */
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "regard.h"

namespace {

typedef std::vector<double> Numbers;

enum { kBand = 1, kIntervals = 2, kWords = 4, kTiles = 8 };
enum { kSoftcap = 1, kBias = 2, kDistanceBias = 4, kDistanceKeys = 8, kDistanceValues = 16, kSink = 32, kDropout = 64,
       kLseGradient = 128, kAllOptions = 255 };

std::string planted;
bool is_planted(const char *name) { return planted == name; }

/* ------------------------------------------------------------------------------------------ numbers */

struct Random {
  uint64_t state;
  uint64_t bits() { /* splitmix64 */
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t end) { return (int64_t)(bits() % (uint64_t)end); }
  double number() { return (double)(below(129) - 64) / 32; } /* within 2, seven bits: exact in every type */
};

int64_t bytes_of(int dtype) { return dtype == REGARD_F64 ? 8 : dtype == REGARD_F32 ? 4 : 2; }
int working(int dtype) { return dtype == REGARD_F64 ? REGARD_F64 : REGARD_F32; }

/* Half the distance of neighbouring numbers around 1. */
double rounding(int dtype) {
  const int bits[4] = {24, 8, 11, 53};
  return std::ldexp(1.0, -bits[dtype]);
}

void write(void *to, int dtype, double x) {
  const float single = (float)x;
  uint32_t word;
  memcpy(&word, &single, 4);
  uint16_t half = (uint16_t)(word >> 16);
  if (dtype == REGARD_F16) half = x == 0 ? 0 : (uint16_t)((half & 0x8000) | (((word & 0x7fffffff) - 0x38000000) >> 13));
  if (dtype == REGARD_F64) memcpy(to, &x, 8);
  else if (dtype == REGARD_F32) memcpy(to, &single, 4);
  else memcpy(to, &half, 2);
}

double read(const void *from, int dtype) {
  if (dtype == REGARD_F64) {
    double x;
    memcpy(&x, from, 8);
    return x;
  }
  uint32_t word = 0;
  uint16_t half = 0;
  memcpy(dtype == REGARD_F32 ? (void *)&word : &half, from, (size_t)bytes_of(dtype));
  if (dtype == REGARD_F16) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                        : exponent == 0 ? std::ldexp(mantissa, -24)
                                        : std::ldexp(mantissa + 1024, exponent - 25);
    return half & 0x8000 ? -size : size;
  }
  if (dtype == REGARD_BF16) word = (uint32_t)half << 16;
  float single;
  memcpy(&single, &word, 4);
  return single;
}

/* A strided (batch, heads, rows, width) of some type; what lies between its numbers has a pattern of its own. */
struct Rows {
  int dtype = 0;
  int64_t batch = 0, heads = 0, count = 0, width = 0, batch_stride = 0, head_stride = 0, row_stride = 0;
  std::unique_ptr<char[]> memory;
  int64_t bytes = 0;

  Rows() {}
  Rows(int type, int64_t b, int64_t h, int64_t n, int64_t w, int layout) : dtype(type), batch(b), heads(h), count(n), width(w) {
    const int64_t gap = layout == 0 ? 0 : layout == 1 ? 3 : 8;
    if (layout == 2) { /* (batch, rows, heads, width): a projection that was split into heads */
      head_stride = width + gap;
      row_stride = heads * head_stride;
      batch_stride = count * row_stride;
    } else {
      row_stride = width + gap;
      head_stride = count * row_stride;
      batch_stride = heads * head_stride;
    }
    bytes = (place(b - 1, h - 1, n - 1, w - 1) + 1) * bytes_of(type);
    memory.reset(new char[(size_t)bytes]);
    memset(memory.get(), 0x5a, (size_t)bytes);
  }
  int64_t place(int64_t b, int64_t h, int64_t row, int64_t i) const {
    return b * batch_stride + h * head_stride + row * row_stride + i;
  }
  void *at(int64_t place) const { return memory.get() + place * bytes_of(dtype); }
  regard_rows view() const { return {memory.get(), batch_stride, head_stride, row_stride}; }

  Numbers fill(Random *random) {
    Numbers numbers;
    each([&](int64_t where) {
      numbers.push_back(random ? random->number() : 0);
      write(at(where), dtype, numbers.back());
    });
    return numbers;
  }
  Numbers numbers() const {
    Numbers found;
    each([&](int64_t where) { found.push_back(read(at(where), dtype)); });
    return found;
  }
  bool gaps_are_whole() const {
    std::vector<char> used((size_t)bytes, 0);
    each([&](int64_t where) { memset(used.data() + where * bytes_of(dtype), 1, (size_t)bytes_of(dtype)); });
    for (int64_t i = 0; i < bytes; ++i)
      if (!used[(size_t)i] && memory[(size_t)i] != 0x5a) return false;
    return true;
  }
  template <class Take>
  void each(Take take) const {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t row = 0; row < count; ++row)
          for (int64_t i = 0; i < width; ++i) take(place(b, h, row, i));
  }
};

/* --------------------------------------------------------------------------------------------- cases */

struct Case {
  int dtype, mask, options, layout;
  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  uint64_t seed;

  regard_problem problem;
  Rows query, key, value, distance_query, distance_bias, distance_keys, distance_values, bias, sink;
  Numbers q, k, v, dq, db, dk, dv, added, sinks;
  std::vector<int32_t> intervals, tile_keys;
  std::vector<uint64_t> words;
  std::vector<int64_t> tile_first, tile_word;
  bool bias_is_shared = false;

  std::string text() const {
    const char *types[4] = {"float32", "bfloat16", "float16", "float64"};
    char line[240];
    snprintf(line, sizeof line, "%s batch %d heads %d/%d lengths %d,%d widths %d,%d mask %d options %d layout %d seed %d",
             types[dtype], (int)batch, (int)heads, (int)kv_heads, (int)q_len, (int)kv_len, (int)head_dim,
             (int)value_dim, mask, options, layout, (int)seed);
    return line;
  }

  int64_t distances() const { return q_len + kv_len - 1; }
  int64_t blocks() const { return (q_len + 63) / 64; }

  void build() {
    Random random{seed * 1000003 + 17};
    const int type = working(dtype);
    query = Rows(dtype, batch, heads, q_len, head_dim, layout);
    key = Rows(dtype, batch, kv_heads, kv_len, head_dim, layout);
    value = Rows(dtype, batch, kv_heads, kv_len, value_dim, (layout + 1) % 3);
    q = query.fill(&random);
    k = key.fill(&random);
    v = value.fill(&random);
    regard_problem p = {};
    p.dtype = dtype;
    p.batch = batch, p.heads = heads, p.kv_heads = kv_heads;
    p.q_len = q_len, p.kv_len = kv_len, p.head_dim = head_dim, p.value_dim = value_dim;
    p.query = query.view(), p.key = key.view(), p.value = value.view();
    p.scale = 1 / std::sqrt((double)head_dim);
    p.distance_offset = q_len - 1;
    p.keep_scale = 1;
    if (options & kSoftcap) p.softcap = 1.5;
    if (options & kBias) {
      bias_is_shared = random.below(2);
      bias = Rows(type, bias_is_shared ? 1 : batch, heads, q_len, kv_len, 0);
      added = bias.fill(&random);
      p.bias = {bias.memory.get(), bias_is_shared ? 0 : bias.batch_stride, bias.head_stride, bias.row_stride, 1};
    }
    if (options & kDistanceBias) {
      distance_bias = Rows(type, 1, heads, distances(), 1, 0);
      db = distance_bias.fill(&random);
      p.distance_bias = {distance_bias.memory.get(), distance_bias.head_stride, 1};
    }
    if (options & kDistanceKeys) {
      distance_query = Rows(type, batch, heads, q_len, head_dim, layout);
      distance_keys = Rows(type, 1, heads, distances(), head_dim, 0);
      dq = distance_query.fill(&random);
      dk = distance_keys.fill(&random);
      p.distance_query = distance_query.view();
      p.distance_keys = {distance_keys.memory.get(), distance_keys.head_stride, distance_keys.row_stride};
    }
    if (options & kDistanceValues) {
      distance_values = Rows(type, 1, heads, distances(), value_dim, 0);
      dv = distance_values.fill(&random);
      p.distance_values = {distance_values.memory.get(), distance_values.head_stride, distance_values.row_stride};
    }
    if (options & kSink) {
      sink = Rows(type, 1, 1, 1, heads, 0);
      sinks = sink.fill(&random);
      p.sink = sink.memory.get();
    }
    if (options & kDropout) {
      p.seed = random.bits();
      p.drop_below = 1ull << 30;
      p.keep_scale = 4.0 / 3.0;
    }
    build_mask(&p.mask, &random);
    problem = p;
  }

  void build_mask(regard_mask *m, Random *random) {
    m->before = m->after = REGARD_UNLIMITED;
    m->offset = 0;
    if (mask & kBand) {
      const int64_t kind = random->below(4);
      m->offset = kind == 0 ? 0 : kind == 1 ? kv_len - q_len : random->below(9) - 4;
      m->after = kind == 2 ? random->below(40) : 0;
      m->before = kind == 0 ? REGARD_UNLIMITED : random->below(kv_len + 8);
      if (kind == 3) m->after = REGARD_UNLIMITED;
    }
    const bool shared = random->below(2);
    const int64_t samples = shared ? 1 : batch, planes = random->below(2) ? 1 : heads;
    if (mask & kIntervals) build_intervals(m, random, samples, planes);
    if (mask & (kWords | kTiles)) {
      m->word_head_stride = planes == 1 ? 0 : blocks();
      m->word_batch_stride = shared ? 0 : planes * blocks();
      if (mask & kTiles) build_tiles(m, random, samples * planes * blocks());
      else build_words(m, random, samples * planes * blocks());
    }
  }

  void build_intervals(regard_mask *m, Random *random, int64_t samples, int64_t planes) {
    const int64_t count = 1 + random->below(3);
    m->interval_count = count;
    m->interval_head_stride = planes == 1 ? 0 : count * 2 * q_len;
    m->interval_batch_stride = samples == 1 ? 0 : planes * count * 2 * q_len;
    intervals.assign((size_t)(samples * planes * count * 2 * q_len), 0);
    for (int64_t plane = 0; plane < samples * planes; ++plane)
      for (int64_t row = 0; row < q_len; ++row) {
        int64_t from = 0;
        for (int64_t i = 0; i < count; ++i) { /* disjoint, ascending, now and then empty */
          const int64_t start = from + random->below(kv_len - from + 1);
          const int64_t end = random->below(5) ? start + random->below(kv_len - start + 1) : start;
          int32_t *pair = intervals.data() + (plane * count + i) * 2 * q_len + row;
          pair[0] = (int32_t)start;
          pair[q_len] = (int32_t)end;
          from = end;
        }
      }
    m->intervals = intervals.data();
  }

  static uint64_t some_word(Random *random) {
    const int64_t kind = random->below(6); /* all, none, and those with both */
    return kind == 0 ? ~0ull : kind == 1 ? 0 : kind == 2 ? ~0ull << random->below(64) : random->bits();
  }

  void build_words(regard_mask *m, Random *random, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      const bool plain = random->below(4) == 0;
      for (int64_t key = 0; key < kv_len; ++key) words.push_back(plain ? ~0ull : some_word(random));
    }
    m->words = words.data();
  }

  void build_tiles(regard_mask *m, Random *random, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      tile_first.push_back((int64_t)tile_word.size());
      for (int64_t key = random->below(kv_len + 1); key < kv_len;) {
        const int64_t end = key + 1 + random->below(kv_len - key);
        tile_keys.push_back((int32_t)key);
        tile_keys.push_back((int32_t)end);
        const bool full = random->below(3) == 0;
        tile_word.push_back(full ? -1 : (int64_t)words.size());
        for (; !full && key < end; ++key) words.push_back(some_word(random));
        key = end + random->below(20);
      }
    }
    tile_first.push_back((int64_t)tile_word.size());
    tile_keys.resize(tile_keys.size() + 1); /* an address even where there is no tile */
    tile_word.resize(tile_word.size() + 1);
    words.resize(words.size() + 1);
    m->tile_first = tile_first.data();
    m->tile_keys = tile_keys.data();
    m->tile_word = tile_word.data();
    m->words = words.data();
  }

  bool allowed(int64_t b, int64_t h, int64_t query_at, int64_t key_at) const {
    const regard_mask &m = problem.mask;
    const int64_t distance = key_at - (query_at + m.offset);
    if (m.before != REGARD_UNLIMITED && distance < -m.before) return false;
    if (m.after != REGARD_UNLIMITED && distance > m.after) return false;
    if (m.intervals) {
      bool inside = false;
      const int32_t *row = m.intervals + b * m.interval_batch_stride + h * m.interval_head_stride + query_at;
      for (int64_t i = 0; i < m.interval_count; ++i, row += 2 * q_len) inside |= row[0] <= key_at && key_at < row[q_len];
      if (!inside) return false;
    }
    if (!m.words) return true;
    const int64_t block = b * m.word_batch_stride + h * m.word_head_stride + query_at / 64;
    if (!m.tile_first) return m.words[block * kv_len + key_at] >> query_at % 64 & 1;
    for (int64_t t = m.tile_first[block]; t < m.tile_first[block + 1]; ++t)
      if (m.tile_keys[2 * t] <= key_at && key_at < m.tile_keys[2 * t + 1])
        return m.tile_word[t] < 0 || (m.words[m.tile_word[t] + key_at - m.tile_keys[2 * t]] >> query_at % 64 & 1);
    return false;
  }

  /* What a weight is multiplied with by dropout: Philox-4x32, seven rounds (Salmon et al. 2011). */
  double kept(int64_t b, int64_t h, int64_t query_at, int64_t key_at) const {
    if (!problem.drop_below) return 1;
    uint32_t x[4] = {(uint32_t)(key_at / 4), (uint32_t)query_at, (uint32_t)h, (uint32_t)b};
    uint32_t low = (uint32_t)problem.seed, high = (uint32_t)(problem.seed >> 32);
    for (int round = 0; round < 7; ++round, low += 0x9E3779B9u, high += 0xBB67AE85u) {
      const uint64_t first = 0xD2511F53ull * x[0], third = 0xCD9E8D57ull * x[2];
      const uint32_t next[4] = {(uint32_t)(third >> 32) ^ x[1] ^ low, (uint32_t)third,
                                (uint32_t)(first >> 32) ^ x[3] ^ high, (uint32_t)first};
      memcpy(x, next, sizeof x);
    }
    return x[key_at % 4] < problem.drop_below ? 0 : problem.keep_scale;
  }
};

/* ------------------------------------------------------------------------------------- the plain loops */

/* A sum, and the sum of the sizes of its terms: rounding errors are relative to the latter. */
struct Sum {
  double value = 0, size = 0;
  void add(double x, double size_of_x) {
    value += x;
    size += size_of_x;
  }
};
typedef std::vector<Sum> Sums;

struct Expected {
  Sums output, lse;
  Sums query, key, value, distance_query, distance_bias, distance_keys, distance_values, bias; /* gradients */
  double largest_score = 0;
};

struct Gradients { /* what comes from above */
  Numbers output, lse;
};

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
  Numbers scores((size_t)c.kv_len, minus_infinity), slopes((size_t)c.kv_len, 0), values((size_t)c.value_dim);
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
    if (!c.added.empty()) score += c.added[(size_t)((((c.bias_is_shared ? 0 : b) * c.heads + h) * c.q_len + i) * c.kv_len + j)];
    if (!c.db.empty()) score += c.db[(size_t)distance];
    scores[(size_t)j] = score;
    highest = std::fmax(highest, score);
    e->largest_score = std::fmax(e->largest_score, size + std::fabs(score));
  }
  e->lse[(size_t)row].value = minus_infinity;
  if (highest == minus_infinity) return;
  if (!c.sinks.empty()) highest = std::fmax(highest, c.sinks[(size_t)h]);
  double sum = c.sinks.empty() ? 0 : std::exp(c.sinks[(size_t)h] - highest);
  for (double score : scores) sum += std::exp(score - highest);
  const double lse = highest + std::log(sum);
  e->lse[(size_t)row] = {lse, 1 + std::fabs(lse)};

  /* The mean of what reaches the weights, which every gradient of a score has subtracted. */
  Numbers reaching((size_t)c.kv_len), reaching_size((size_t)c.kv_len);
  double mean = 0, mean_size = 0;
  for (int64_t j = 0; j < c.kv_len; ++j) {
    if (scores[(size_t)j] == minus_infinity) continue;
    const double weight = std::exp(scores[(size_t)j] - lse), kept = c.kept(b, h, i, j);
    const int64_t distance = h * c.distances() + j - i + p.distance_offset;
    const int64_t key = (b * c.kv_heads + kv_head) * c.kv_len + j;
    for (int64_t d = 0; d < c.value_dim; ++d)
      values[(size_t)d] = c.v[(size_t)(key * c.value_dim + d)] +
                          (c.dv.empty() ? 0 : c.dv[(size_t)(distance * c.value_dim + d)]);
    add_row(&e->output[(size_t)(row * c.value_dim)], weight * kept, weight * kept, values.data(), c.value_dim);
    add_row(&e->value[(size_t)(key * c.value_dim)], weight * kept, weight * kept, above, c.value_dim);
    if (!c.dv.empty())
      add_row(&e->distance_values[(size_t)((b * c.heads * c.distances() + distance) * c.value_dim)], weight * kept,
              weight * kept, above, c.value_dim);
    reaching[(size_t)j] = kept * dot(above, values.data(), c.value_dim, &reaching_size[(size_t)j]);
    reaching_size[(size_t)j] *= kept;
    mean += weight * reaching[(size_t)j];
    mean_size += weight * reaching_size[(size_t)j];
  }
  const double from_lse = g.lse.empty() ? 0 : g.lse[(size_t)row];
  for (int64_t j = 0; j < c.kv_len; ++j) {
    if (scores[(size_t)j] == minus_infinity) continue;
    const double weight = std::exp(scores[(size_t)j] - lse);
    const int64_t distance = h * c.distances() + j - i + p.distance_offset, in_sample = b * c.heads * c.distances() + distance;
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

Expected expect(const Case &c, const Gradients &g) {
  Expected e;
  const int64_t rows = c.batch * c.heads * c.q_len, keys = c.batch * c.kv_heads * c.kv_len;
  const int64_t table = c.batch * c.heads * c.distances();
  e.output.resize((size_t)(rows * c.value_dim));
  e.lse.resize((size_t)rows);
  e.query.resize((size_t)(rows * c.head_dim));
  e.key.resize((size_t)(keys * c.head_dim));
  e.value.resize((size_t)(keys * c.value_dim));
  e.bias.resize(c.added.size());
  if (!c.db.empty()) e.distance_bias.resize((size_t)table);
  if (!c.dk.empty()) e.distance_query.resize((size_t)(rows * c.head_dim)), e.distance_keys.resize((size_t)(table * c.head_dim));
  if (!c.dv.empty()) e.distance_values.resize((size_t)(table * c.value_dim));
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = 0; i < c.q_len; ++i) expect_row(c, g, b, h, i, &e);
  return e;
}

/* --------------------------------------------------------------------------------------- comparing */

int64_t failures = 0, checks = 0;

void fail(const Case &c, const char *what, const char *how) {
  if (++failures <= 20) printf("FAILED %s, %s: %s: %s\n", regard_isa(), c.text().c_str(), what, how);
}

/* How far a result may be from the loops, relative to the sum of the sizes of its terms: an error of a score is one of
 * its weight, and it has at most one rounding for each number that it is made from. */
double allowance(const Case &c, const Expected &e) {
  const double u = rounding(working(c.dtype)), stored = c.dtype == working(c.dtype) ? 0 : rounding(c.dtype);
  const double exponential = c.dtype == REGARD_F64 ? 4 * u : c.dtype == REGARD_BF16 ? 1e-4 : 2e-7;
  const double steps = (double)(2 * c.head_dim + c.value_dim + c.q_len + c.kv_len + 16);
  return 4 * stored + exponential + (1 + e.largest_score) * steps * u;
}

void compare(const Case &c, const char *what, const Numbers &got, const Sums &expected, double relative, int dtype) {
  ++checks;
  if (got.size() != expected.size()) return fail(c, what, "another number of elements");
  for (size_t i = 0; i < got.size(); ++i) {
    const Sum &sum = expected[i];
    if (got[i] == sum.value) continue;
    const double may = relative * sum.size + rounding(dtype) * std::fabs(sum.value) + (dtype == REGARD_F16 ? 6e-8 : 1e-30);
    if (std::fabs(got[i] - sum.value) <= may) continue;
    char line[120];
    snprintf(line, sizeof line, "element %zu is %.9g, not %.9g; it may differ by %.2g", i, got[i], sum.value, may);
    return fail(c, what, line);
  }
}

/* The problem as the library gets it: as it is, or with the fault that was asked for. */
regard_problem handed_over(const Case &c) {
  regard_problem p = c.problem;
  if (is_planted("scale")) p.scale *= 1.05;
  if (is_planted("band") && p.mask.after != REGARD_UNLIMITED) ++p.mask.after;
  if (is_planted("heads")) p.key.head_stride = 0;
  if (is_planted("length") && p.kv_len > 1) --p.kv_len;
  if (is_planted("sink")) p.sink = nullptr;
  if (is_planted("dropout") && p.drop_below) ++p.seed;
  return p;
}

struct Forwarded {
  Rows output, lse, low;
};

Forwarded check_forward(const Case &c, const Expected &e, int32_t threads) {
  regard_problem p = handed_over(c);
  p.threads = threads;
  const int type = working(c.dtype);
  Forwarded f{Rows(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, (c.layout + 2) % 3),
              Rows(type, c.batch, c.heads, c.q_len, 1, 0), Rows(type, c.batch, c.heads, c.q_len, 1, 0)};
  const bool with_low = c.seed % 3 != 0;
  const regard_forward_results r{f.output.view(), f.lse.memory.get(), with_low ? f.low.memory.get() : nullptr};
  if (regard_forward(&p, &r) != REGARD_OK) fail(c, "forward", "another status than 0");
  if (is_planted("output")) write(f.output.at(f.output.place(0, c.heads - 1, c.q_len - 1, c.value_dim - 1)), c.dtype, 2);
  if (is_planted("gap") && c.layout == 2) f.output.memory[(size_t)(c.value_dim * bytes_of(c.dtype))] = 0;
  const double relative = allowance(c, e);
  compare(c, "output", f.output.numbers(), e.output, relative, c.dtype);
  compare(c, "lse", f.lse.numbers(), e.lse, relative, type);
  if (with_low) {
    Numbers both = f.lse.numbers();
    const Numbers low = f.low.numbers();
    for (size_t i = 0; i < both.size(); ++i) {
      if (!(std::fabs(low[i]) <= 2 * rounding(type) * (1 + std::fabs(both[i])))) fail(c, "lse_low", "it is no rest of a rounding");
      both[i] += low[i];
    }
    compare(c, "lse + lse_low", both, e.lse, relative, type);
  }
  if (!f.output.gaps_are_whole()) fail(c, "output", "written between its rows");
  return f;
}

/* Tables come in parts that the caller sums. */
Numbers sum_of_splits(const Rows &parts, int64_t tables, int64_t splits) {
  const Numbers all = parts.numbers();
  const size_t one = all.size() / (size_t)(tables * splits);
  Numbers sums(one * (size_t)tables, 0);
  for (size_t i = 0; i < all.size(); ++i) sums[i / (one * (size_t)splits) * one + i % one] += all[i];
  return sums;
}

void check_backward(const Case &c, const Expected &e, const Forwarded &f, Rows *above, Rows *lse_above, int32_t threads) {
  regard_problem p = handed_over(c);
  p.threads = threads;
  const int type = working(c.dtype);
  const int64_t splits = regard_backward_splits(&p), tables = c.batch * c.heads;
  if (splits < 1) return fail(c, "backward_splits", "below 1");
  const auto table = [&](int kind, const Numbers &there, int64_t width) {
    Rows parts(kind, there.empty() ? 1 : tables, there.empty() ? 1 : splits, there.empty() ? 1 : c.distances(), width, 0);
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
  a.grad_output = above->view();
  a.lse = f.lse.memory.get();
  a.lse_low = c.seed % 3 ? f.low.memory.get() : nullptr;
  a.grad_lse = c.options & kLseGradient ? lse_above->memory.get() : nullptr;
  a.grad_query = query.view(), a.grad_key = key.view(), a.grad_value = value.view();
  if (!c.added.empty()) a.grad_bias = {bias.memory.get(), p.bias.batch_stride, p.bias.head_stride, p.bias.query_stride, 1};
  if (!c.db.empty()) a.grad_distance_bias = by_bias.memory.get();
  if (!c.dk.empty()) a.grad_distance_query = met.view(), a.grad_distance_keys = by_keys.memory.get();
  if (!c.dv.empty()) a.grad_distance_values = by_values.memory.get();
  a.table_splits = splits;
  if (regard_backward(&p, &a) != REGARD_OK) fail(c, "backward", "another status than 0");
  if (is_planted("gradient")) write(key.at(key.place(0, 0, c.kv_len - 1, 0)), c.dtype, 50);
  const double relative = 2 * allowance(c, e); /* scores are computed again: their errors come twice */
  compare(c, "gradient of query", query.numbers(), e.query, relative, c.dtype);
  compare(c, "gradient of key", key.numbers(), e.key, relative, c.dtype);
  compare(c, "gradient of value", value.numbers(), e.value, relative, c.dtype);
  if (!c.added.empty()) compare(c, "gradient of bias", bias.numbers(), e.bias, relative, type);
  if (!c.db.empty()) compare(c, "gradient of distance_bias", sum_of_splits(by_bias, tables, splits), e.distance_bias, relative, type);
  if (!c.dk.empty()) {
    compare(c, "gradient of distance_query", met.numbers(), e.distance_query, relative, type);
    compare(c, "gradient of distance_keys", sum_of_splits(by_keys, tables, splits), e.distance_keys, relative, type);
  }
  if (!c.dv.empty())
    compare(c, "gradient of distance_values", sum_of_splits(by_values, tables, splits), e.distance_values, relative, type);
  if (!query.gaps_are_whole() || !key.gaps_are_whole() || !value.gaps_are_whole())
    fail(c, "gradients", "written between rows");
}

/* ------------------------------------------------------------------------------------------- running */

void check(Case *given) {
  given->build();
  const Case &c = *given;
  Random random{c.seed + 5};
  Rows above(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, c.layout);
  Rows lse_above(working(c.dtype), c.batch, c.heads, c.q_len, 1, 0);
  Gradients g{above.fill(&random), lse_above.fill(&random)};
  if (!(c.options & kLseGradient)) g.lse.clear();
  const Expected e = expect(c, g);
  const char *name;
  for (int32_t isa = 0; (name = regard_available_isa(isa)); ++isa) {
    if (regard_set_isa(name) != REGARD_OK) return fail(c, name, "it is available and cannot be set");
    const int32_t threads = (c.seed + (uint64_t)isa) % 2 ? 1 : 3;
    const Forwarded forwarded = check_forward(c, e, threads);
    check_backward(c, e, forwarded, &above, &lse_above, threads);
  }
  regard_set_isa(nullptr);
}

Case sizes(int dtype, int mask, int options, int64_t q_len, int64_t kv_len, int64_t head_dim, int64_t value_dim,
           uint64_t seed) {
  Random random{seed}; /* so that no two choices go together */
  Case c{};
  c.dtype = dtype, c.mask = mask, c.options = options, c.layout = (int)random.below(3);
  c.batch = 1 + random.below(2);
  c.kv_heads = 1 + random.below(2);
  c.heads = c.kv_heads * (1 + random.below(2));
  c.q_len = q_len, c.kv_len = kv_len, c.head_dim = head_dim, c.value_dim = value_dim;
  c.seed = seed;
  return c;
}

void check_all(int64_t step) {
  const int64_t lengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 300}, widths[] = {1, 3, 16, 64, 80, 257};
  const int masks[] = {0, kBand, kIntervals, kWords, kTiles, kBand | kIntervals, kBand | kWords, kIntervals | kWords,
                       kBand | kTiles};
  uint64_t number = 0;
  Random random{1};
  const auto take = [&](Case c) {
    if (number % (uint64_t)step == 0) check(&c);
  };
  for (int dtype = 0; dtype < 4; ++dtype) {
    /* Every length of the queries with every kind of mask. */
    for (int mask : masks)
      for (int64_t length : lengths)
        take(sizes(dtype, mask, 0, length, lengths[random.below(10)], widths[random.below(5)], widths[random.below(5)],
                   ++number));
    for (int64_t width : widths) /* every width, the largest too */
      take(sizes(dtype, kBand, kLseGradient, 65, 130, width, widths[random.below(6)], ++number));
    for (int option = 1; option < kAllOptions; option *= 2)
      take(sizes(dtype, masks[random.below(9)], option, 65, 79, 16, 16, ++number));
    for (int i = 0; i < 60; ++i) {
      const int64_t q_len = 1 + random.below(140), kv_len = 1 + random.below(140);
      const int options = (int)random.below(kAllOptions + 1), mask = masks[random.below(9)];
      take(sizes(dtype, mask, options, q_len, kv_len, 1 + random.below(70), 1 + random.below(70), ++number));
    }
  }
}

/* Bool masks to words: every length, laid out in both orders, broadcast and not. */
void check_packing() {
  const int64_t lengths[] = {1, 15, 64, 65, 130};
  Random random{3};
  for (int64_t q_len : lengths)
    for (int64_t kv_len : lengths)
      for (int form = 0; form < 4; ++form) {
        Case c = sizes(REGARD_F32, kWords, form, q_len, kv_len, 1, 1, 2);
        const int64_t batch = 2, heads = 3, planes = form & 1 ? 1 : batch * heads;
        std::vector<uint8_t> mask((size_t)(planes * q_len * kv_len));
        for (uint8_t &byte : mask) byte = (uint8_t)(random.below(2) * (1 + random.below(255)));
        regard_pairs view{mask.data(), heads * q_len * kv_len, q_len * kv_len, kv_len, 1};
        if (form & 1) view.batch_stride = view.head_stride = 0;
        if (form & 2) view.query_stride = 1, view.key_stride = q_len;
        std::vector<uint64_t> words((size_t)(batch * heads * c.blocks() * kv_len), 0x5a5a);
        if (regard_pack_mask(&view, batch, heads, q_len, kv_len, words.data(), 1 + form) != REGARD_OK)
          fail(c, "pack_mask", "another status than 0");
        if (is_planted("word")) words.back() ^= 1;
        bool right = true;
        for (int64_t plane = 0; plane < batch * heads; ++plane)
          for (int64_t i = 0; i < q_len; ++i)
            for (int64_t j = 0; j < kv_len; ++j) {
              const uint8_t byte = mask[(size_t)(plane / heads * view.batch_stride + plane % heads * view.head_stride +
                                                 i * view.query_stride + j * view.key_stride)];
              const uint64_t word = words[(size_t)((plane * c.blocks() + i / 64) * kv_len + j)];
              right &= (word >> i % 64 & 1) == (byte != 0);
            }
        ++checks;
        if (!right) fail(c, "pack_mask", "a bit that is not the mask's");
      }
}

/* What the library says of itself. */
void check_library() {
  Case c = sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1);
  c.build();
  if (regard_abi_version() != REGARD_ABI_VERSION) fail(c, "regard_abi_version", "another than the header's");
  if (regard_struct_size("regard_problem") != (int64_t)sizeof(regard_problem)) fail(c, "regard_struct_size", "wrong");
  if (regard_struct_size("no such") != -1 || regard_struct_size(nullptr) != -1) fail(c, "regard_struct_size", "knows all");
  if (regard_set_isa("no such") != REGARD_BAD_ARGUMENT) fail(c, "regard_set_isa", "takes any name");
  if (!regard_available_isa(0) || regard_available_isa(-1) || regard_available_isa(99)) fail(c, "regard_available_isa", "wrong");
  if (strcmp(regard_isa(), regard_available_isa(0)) != 0 && !getenv("REGARD_ISA")) fail(c, "regard_isa", "not the best");
  const regard_forward_results r{};
  c.problem.dtype = 4;
  if (regard_forward(&c.problem, &r) != REGARD_BAD_ARGUMENT) fail(c, "regard_forward", "takes any dtype");
}

}  // namespace

int main(int count, char **arguments) {
  int64_t step = 1;
  for (int i = 1; i < count; ++i) {
    if (strcmp(arguments[i], "--few") == 0) step = 10;
    else if (strcmp(arguments[i], "--plant") == 0 && i + 1 < count) planted = arguments[++i];
    else return fprintf(stderr, "usage: test_kernels [--few] [--plant NAME]\n"), 2;
  }
  check_library();
  const char *name;
  for (int32_t isa = 0; (name = regard_available_isa(isa)) && regard_set_isa(name) == REGARD_OK; ++isa) check_packing();
  regard_set_isa(nullptr);
  check_all(step);
  printf("%lld passed, %lld failed\n", (long long)(checks > failures ? checks - failures : 0), (long long)failures);
  return failures || !checks ? 1 : 0;
}
