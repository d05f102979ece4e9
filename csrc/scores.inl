/* scores.inl: what stands between a dot product and a weight - scale, softcap, bias, tables, mask, dropout.
 *
 * A weight is a power of two: 2^(score * unit - ...), see `unit_of`. */

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

/* Does the problem have no more than a positive scale and a mask? */
REGARD_INLINE bool is_plain(const regard_problem &p) {
  return (float)p.scale > 0 && p.softcap == 0 && !p.bias.data && !p.distance_bias.data && !p.distance_keys.data;
}

/* One block of queries of one head, and the tile of keys at hand. */
template <class Scalar>
struct ScoreTile {
  const regard_problem &problem;
  int64_t batch, head, first_query, rows; /* rows: queries of the block */
  Scalar *scores;                         /* [keys][64] */
  Scalar *added;                          /* [keys][64], scratch for the bias */
  Scalar *by_distance;                    /* [keys + 63][64]: distance_keys times the block's queries, or NULL */
  Scalar *slopes;                         /* [keys][64]: of the softcap, written where not NULL */
};

/* The bias of keys [first, end) into tile.added; lanes past the block's queries become 0. */
template <class Scalar>
void load_bias(const ScoreTile<Scalar> &tile, int64_t first, int64_t end) {
  const regard_pairs &bias = tile.problem.bias;
  const Scalar *from = (const Scalar *)bias.data + tile.batch * bias.batch_stride + tile.head * bias.head_stride +
                       tile.first_query * bias.query_stride;
  if (bias.key_stride == 1 && bias.query_stride != 0) {
    rows_to_tile(from + first, bias.query_stride * (int64_t)sizeof(Scalar), tile.rows, end - first, tile.added);
    return;
  }
  if (bias.query_stride == 0) {
    for (int64_t key = first; key < end; ++key) {
      Scalar *to = tile.added + (key - first) * kBlock;
      const auto shared = broadcast(from[key * bias.key_stride]);
      for (int lane = 0; lane < kBlock; lane += Simd<Scalar>::width) store(to + lane, shared);
      for (int64_t lane = tile.rows; lane < kBlock; ++lane) to[lane] = 0;
    }
    return;
  }
  for (int64_t key = first; key < end; ++key) {
    Scalar *to = tile.added + (key - first) * kBlock;
    for (int64_t lane = 0; lane < kBlock; ++lane)
      to[lane] = lane < tile.rows ? from[key * bias.key_stride + lane * bias.query_stride] : Scalar(0);
  }
}

/* The table's entries at the distances of a key to a vector of queries; 0 for lanes past the last query. */
template <class Scalar>
REGARD_INLINE VectorOf<Scalar> distance_biases(const ScoreTile<Scalar> &tile, const Scalar *table, int64_t key,
                                               int lane) {
  constexpr int width = Simd<Scalar>::width;
  const regard_problem &p = tile.problem;
  const int64_t nearest = key - tile.first_query - lane + p.distance_offset; /* of the first lane; then descending */
  if (lane + width <= tile.rows && p.distance_bias.row_stride == 1)
    return reversed(load(table + nearest - (width - 1)));
  alignas(64) Scalar gathered[width];
  for (int i = 0; i < width; ++i)
    gathered[i] = lane + i < tile.rows ? table[(nearest - i) * p.distance_bias.row_stride] : Scalar(0);
  return load(gathered);
}

/* What a score in a tile is multiplied by to be an exponent of two: the tile of a plain problem holds dot products. */
template <class Scalar>
REGARD_INLINE Scalar unit_of(const regard_problem &p) {
  return (Scalar)(is_plain(p) ? p.scale * kLog2E : kLog2E);
}

/* Dot products of keys [first, end) with lane groups [first_group, end_group) to scores: everything but the mask. */
template <class Scalar>
void finish_scores(const ScoreTile<Scalar> &tile, int64_t first, int64_t end, int first_group, int end_group) {
  typedef VectorOf<Scalar> Vector;
  constexpr int width = Simd<Scalar>::width;
  const regard_problem &p = tile.problem;
  const Scalar *table = (const Scalar *)p.distance_bias.data;
  if (table) table += tile.head * p.distance_bias.head_stride;
  if (p.bias.data) load_bias(tile, first, end);
  if (tile.by_distance) add_by_distance(tile.scores, tile.by_distance, end - first, first_group, end_group);
  const Scalar scale = (Scalar)p.scale, cap = (Scalar)p.softcap;
  const Scalar inner = p.softcap != 0 ? scale / cap : scale;
  for (int64_t key = first; key < end; ++key) {
    Scalar *row = tile.scores + (key - first) * kBlock;
    for (int lane = first_group * kGroup; lane < end_group * kGroup; lane += width) {
      Vector score = load(row + lane) * inner;
      if (p.softcap != 0) {
        const Vector bent = hyperbolic_tangent(score);
        if (tile.slopes) store(tile.slopes + (key - first) * kBlock + lane, Scalar(1) - bent * bent);
        score = bent * cap;
      }
      if (p.bias.data) { /* -inf forbids a pair, whatever its key holds */
        const Vector added = load(tile.added + (key - first) * kBlock + lane);
        score = added == -INFINITY ? added : score + added;
      }
      if (table) {
        score = score + distance_biases(tile, table, key, lane);
      }
      store(row + lane, score);
    }
  }
}

/* 2^(x + y), whatever their sizes: what rounding takes from the sum is not lost (Knuth's two-sum). */
template <class Vector>
REGARD_INLINE Vector power_of_sum(Vector x, Vector y) {
  const Vector whole = x + y, taken = whole - x, rest = (x - (whole - taken)) + (y - taken);
  return whole < -1000000 ? Vector{} : power_of_two<6>(whole, -rest); /* there the rest may be NaN */
}

/* 2^(score * unit - high - low), with what rounding the product loses put back: large scores keep all their digits.
 * For low far below 1, as it is below kLarge. */
template <class Vector>
REGARD_INLINE Vector exact_weight(Vector score, Vector unit, Vector high, Vector low) {
  const Vector exponent = rounded_product(score, unit), lost = product_error(score, unit, exponent);
  const Vector weight = power_of_two<6>(exponent - high, low - lost);
  return exponent - high < -1000000 ? Vector{} : weight; /* there the lost part may be NaN */
}

/* The same for any low. */
template <class Vector>
REGARD_INLINE Vector exact_weight_of_large(Vector score, Vector unit, Vector high, Vector low) {
  const Vector exponent = rounded_product(score, unit), lost = product_error(score, unit, exponent);
  return exponent - high < -1000000 ? Vector{} : power_of_sum(exponent - high, lost - low);
}

/* 2^((score - high) * unit), right for scores of any size: the difference is taken first. */
template <class Vector>
REGARD_INLINE Vector weight_below(Vector score, Vector high, Vector unit) {
  const Vector difference = score - high, exponent = rounded_product(difference, unit);
  const Vector weight = power_of_two<6>(exponent, -product_error(difference, unit, exponent));
  return exponent < -1000000 ? Vector{} : weight; /* there what is lost may be NaN */
}

/* 2^((score - high) * unit - low), for low far below 1, as it is below kLarge. */
template <class Vector>
REGARD_INLINE Vector weight_a_little_below(Vector score, Vector high, Vector unit, Vector low) {
  const Vector difference = score - high, exponent = rounded_product(difference, unit);
  const Vector weight = power_of_two<6>(exponent, low - product_error(difference, unit, exponent));
  return exponent < -1000000 ? Vector{} : weight; /* there what is lost may be NaN */
}

/* 2^((score - high) * unit - low) for any low: that of a row of huge scores is all of the logarithm of its sum. */
template <class Vector>
REGARD_INLINE Vector weight_below(Vector score, Vector high, Vector unit, Vector low) {
  const Vector difference = score - high, exponent = rounded_product(difference, unit);
  const Vector lost = product_error(difference, unit, exponent);
  return exponent < -1000000 ? Vector{} : power_of_sum(exponent, lost - low);
}

/* From this size of a natural logarithm on, what one float lacks of it is no small number any more. */
constexpr double kLarge = 262144;

/* From this size on two floats have no digits left behind the point either. */
constexpr double kHuge = 4294967296.0;

/* The natural logarithm that the highest score of a row stands for. Where it is huge, exactly the number that a score
 * becomes when it is multiplied by the scale. */
template <class Scalar>
REGARD_INLINE double logarithm_of(const regard_problem &p, Scalar highest) {
  if (!is_plain(p)) return (double)highest;
  const double exact = (double)highest * (double)unit_of<Scalar>(p) * kLn2;
  return exact < kHuge && exact > -kHuge ? exact : (double)(Scalar)(highest * (Scalar)p.scale);
}

/* log(exp(top) * sum) as a number and what rounding took from it. */
template <class Scalar>
REGARD_INLINE void split_lse(double top, double sum, Scalar *lse, Scalar *low) {
  const double rest = log(sum);
  *lse = (Scalar)(top + rest);
  *low = *lse - *lse == 0 ? (Scalar)((top - (double)*lse) + rest) : Scalar(0);
}

/* A row's highest logit, and the sums of its weights and of the sink's below it. */
struct Normaliser {
  double top, weights, sink = 0;
  double shrunk = 1; /* what the row's weights were multiplied by because the sink is the highest */
  Normaliser(double highest, double sum) : top(highest), weights(sum) {}

  void take_in(double logit) {
    if (logit > top) {
      shrunk = exp(top - logit);
      weights *= shrunk;
      top = logit;
      sink = 1;
    } else {
      sink = exp(logit - top);
    }
  }
  double sum() const { return weights + sink; }
};

/* -inf where a pair may not attend. */
template <class Scalar>
void mask_scores(Scalar *scores, const uint64_t *words, int64_t keys, int first_group, int end_group) {
  constexpr int width = Simd<Scalar>::width;
  const auto never = broadcast(-(Scalar)INFINITY);
  for (int64_t key = 0; key < keys; ++key)
    for (int lane = first_group * kGroup; lane < end_group * kGroup; lane += width)
      store(scores + key * kBlock + lane, where_bit(words[key], lane, load(scores + key * kBlock + lane), never));
}

template <class Scalar>
void raise_to_scores(Scalar *highest, const Scalar *scores, int64_t keys, int first_group, int end_group) {
  constexpr int width = Simd<Scalar>::width;
  for (int lane = first_group * kGroup; lane < end_group * kGroup; lane += width) {
    auto most = load(highest + lane);
    for (int64_t key = 0; key < keys; ++key) most = larger(most, load(scores + key * kBlock + lane));
    store(highest + lane, most);
  }
}

/* ------------------------------------------------------------------------------------------- dropout */

/* Philox-4x32 with seven rounds (Salmon et al. 2011), as regard/_dropout.py has it: the four numbers of one
 * counter belong to four neighbouring keys. */
REGARD_INLINE void philox(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint64_t seed, uint32_t out[4]) {
  uint32_t low = (uint32_t)seed, high = (uint32_t)(seed >> 32);
  for (int round = 0; round < 7; ++round) {
    const uint64_t left = (uint64_t)a * 0xD2511F53u, right = (uint64_t)c * 0xCD9E8D57u;
    a = (uint32_t)(right >> 32) ^ b ^ low;
    b = (uint32_t)right;
    c = (uint32_t)(left >> 32) ^ d ^ high;
    d = (uint32_t)left;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

/* For each key of [first, end) a word: which of the block's 64 queries keep it. */
void dropout_words(const regard_problem &p, int64_t batch, int64_t head, int64_t first_query, int64_t first,
                   int64_t end, uint64_t *kept) {
  for (int64_t four = first >> 2; four <= (end - 1) >> 2; ++four) {
    uint64_t words[4] = {0, 0, 0, 0};
    for (int lane = 0; lane < kBlock; ++lane) {
      uint32_t numbers[4];
      philox((uint32_t)four, (uint32_t)(first_query + lane), (uint32_t)head, (uint32_t)batch, p.seed, numbers);
      for (int i = 0; i < 4; ++i) words[i] |= (uint64_t)(numbers[i] >= p.drop_below) << lane;
    }
    for (int i = 0; i < 4; ++i)
      if (4 * four + i >= first && 4 * four + i < end) kept[4 * four + i - first] = words[i];
  }
}

/* Dropped weights become 0 (a NaN stays NaN), the others are scaled up. */
template <class Scalar>
void drop_weights(const regard_problem &p, Scalar *weights, const uint64_t *kept, int64_t keys, int first_group,
                  int end_group) {
  constexpr int width = Simd<Scalar>::width;
  const auto grown = broadcast((Scalar)p.keep_scale), none = broadcast(Scalar(0));
  for (int64_t key = 0; key < keys; ++key)
    for (int lane = first_group * kGroup; lane < end_group * kGroup; lane += width) {
      Scalar *at = weights + key * kBlock + lane;
      store(at, load(at) * where_bit(kept[key], lane, grown, none));
    }
}
