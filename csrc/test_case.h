/* test_case.h: a case is sizes, a mask and options. Its numbers are exact in every type, and its mask is read pair by
 * pair, as regard.h defines it. */
#ifndef REGARD_TEST_CASE_H
#define REGARD_TEST_CASE_H

#include <algorithm>
#include <cstdio>
#include <string>

#include "test_numbers.h"

enum { kBand = 1, kIntervals = 2, kWords = 4, kTiles = 8 };
enum {
  kSoftcap = 1,
  kBias = 2,
  kDistanceBias = 4,
  kDistanceKeys = 8,
  kDistanceValues = 16,
  kSink = 32,
  kDropout = 64,
  kLseGradient = 128,
  kAllOptions = 255
};

struct Case {
  int dtype, mask, options, layout;
  int64_t batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim;
  uint64_t seed;
  int64_t most_intervals;       /* of a row; 0: three */
  bool narrow;                  /* a band or intervals that show few keys */
  int64_t key_period;           /* keys repeat after so many, and so do scores; 0: they do not */
  double large;                 /* the scores are near to this or to minus this, and exact; 0: they are small */
  int64_t hole_first, hole_end; /* keys that no query may attend to; bands keep off it not */

  regard_problem problem;
  Rows query, key, value, distance_query, distance_bias, distance_keys, distance_values, bias, sink;
  Numbers q, k, v, dq, db, dk, dv, added, sinks;
  std::vector<int32_t> intervals, tile_keys;
  std::vector<uint64_t> words;
  std::vector<int64_t> tile_first, tile_word;
  bool bias_is_shared = false;

  std::string text() const {
    const char *types[4] = {"float32", "bfloat16", "float16", "float64"};
    char line[280];
    snprintf(line, sizeof line,
             "%s batch %d heads %d/%d lengths %d,%d widths %d,%d mask %d options %d layout %d seed %d%s%s",
             types[dtype], (int)batch, (int)heads, (int)kv_heads, (int)q_len, (int)kv_len, (int)head_dim,
             (int)value_dim, mask, options, layout, (int)seed, narrow ? " narrow" : "", large != 0 ? " large" : "");
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
    if (key_period) repeat_keys();
    if (large != 0) enlarge(&random);
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
      if (random.below(2)) forbid_some(&random);
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

  void repeat_keys() {
    for (size_t i = 0; i < k.size(); ++i) {
      const size_t width = (size_t)head_dim, at = i / width % (size_t)kv_len, first = i - at * width;
      if (at >= (size_t)key_period) k[i] = k[first + at % (size_t)key_period * width];
    }
    key.put(k);
  }

  /* Element 0 takes the score there, the others differ in it. Few bits in each: the dot products stay exact. */
  void enlarge(Random *random) {
    const int64_t kind = random->below(3); /* all above, all below, both */
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = i % (size_t)head_dim ? std::round(4 * q[i]) / 4 : large * std::sqrt((double)head_dim) / 2;
    for (size_t i = 0; i < k.size(); ++i)
      k[i] = i % (size_t)head_dim ? std::round(4 * k[i]) / 4 : kind == 0 || (kind == 2 && random->below(2)) ? 2 : -2;
    query.put(q);
    key.put(k);
  }

  /* A bias of -inf forbids a pair too. */
  void forbid_some(Random *random) {
    const int64_t whole_row = random->below(3) == 0 ? random->below((int64_t)added.size() / kv_len) : -1;
    for (size_t i = 0; i < added.size(); ++i)
      if (random->below(8) == 0 || (int64_t)i / kv_len == whole_row) added[i] = -INFINITY;
    bias.put(added);
  }

  bool in_hole(int64_t key_at) const { return hole_first <= key_at && key_at < hole_end; }

  void build_mask(regard_mask *m, Random *random) {
    m->before = m->after = REGARD_UNLIMITED;
    m->offset = 0;
    if (mask & kBand) {
      const int64_t kind = random->below(4);
      m->offset = kind == 0 ? 0 : kind == 1 ? kv_len - q_len : random->below(9) - 4;
      m->after = kind == 2 ? random->below(40) : 0;
      m->before = kind == 0 ? REGARD_UNLIMITED : random->below(kv_len + 8);
      if (kind == 3) m->after = REGARD_UNLIMITED;
      if (narrow) {
        m->offset = kv_len - q_len - random->below(kv_len / 2 + 1);
        m->before = random->below(70);
        m->after = random->below(3);
      }
    }
    const bool shared = random->below(2);
    const int64_t samples = shared ? 1 : batch, planes = random->below(2) ? 1 : heads;
    if (mask & kIntervals) build_intervals(m, random, samples, planes);
    if (mask & (kWords | kTiles)) {
      m->word_head_stride = planes == 1 ? 0 : blocks();
      m->word_batch_stride = shared ? 0 : planes * blocks();
      if (mask & kTiles)
        build_tiles(m, random, samples * planes * blocks());
      else
        build_words(m, random, samples * planes * blocks());
    }
  }

  void build_intervals(regard_mask *m, Random *random, int64_t samples, int64_t planes) {
    const int64_t count = 1 + random->below(most_intervals ? most_intervals : 3), base = random->below(kv_len);
    m->interval_count = count;
    m->interval_head_stride = planes == 1 ? 0 : count * 2 * q_len;
    m->interval_batch_stride = samples == 1 ? 0 : planes * count * 2 * q_len;
    intervals.assign((size_t)(samples * planes * count * 2 * q_len), 0);
    for (int64_t plane = 0; plane < samples * planes; ++plane)
      for (int64_t row = 0; row < q_len; ++row) {
        int64_t from = 0;
        for (int64_t i = 0; i < count; ++i) { /* disjoint, ascending, now and then empty */
          int64_t start = from + random->below(kv_len - from + 1);
          int64_t end = random->below(5) ? start + random->below(kv_len - start + 1) : start;
          if (narrow) {
            start = std::min(std::max(from, base) + random->below(40), kv_len);
            end = std::min(start + random->below(90), kv_len);
          }
          if (in_hole(start)) start = std::min(hole_end, end);
          if (start < hole_first && end > hole_first) end = hole_first;
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
      for (int64_t key = 0; key < kv_len; ++key) words.push_back(in_hole(key) ? 0 : plain ? ~0ull : some_word(random));
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
        const bool full = random->below(3) == 0 && (end <= hole_first || key >= hole_end);
        tile_word.push_back(full ? -1 : (int64_t)words.size());
        for (; !full && key < end; ++key) words.push_back(in_hole(key) ? 0 : some_word(random));
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
      for (int64_t i = 0; i < m.interval_count; ++i, row += 2 * q_len)
        inside |= row[0] <= key_at && key_at < row[q_len];
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

/* Sizes that are given; layout and numbers of heads and samples from the seed. */
Case sizes(int dtype, int mask, int options, int64_t q_len, int64_t kv_len, int64_t head_dim, int64_t value_dim,
           uint64_t seed);

#endif
