/* causal_chunk.inl: 64 tokens of a causal sum of features, and the state that stands for all before them.
 *
 *     out_i = sum_{j <= i} w_ij v_j / sum_{j <= i} w_ij,   w_ij = (phi(q_i) . phi(k_j)) exp(log_j)
 *
 * Within a chunk w is a triangle; what lies before it is S = sum_j phi(k_j) exp(log_j - scale) v_j^T and z, the same
 * sum without v_j (Katharopoulos et al. 2020; by chunks: Hua et al. 2022). `scale` is the largest log weight so far, so
 * that no factor below is above 1: past_i = exp(scale - high_i), last_j = exp(log_j - high_end) and
 * pair_ij = exp(log_j - high_i), where high_i is the largest up to i.
 *
 * Lanes are tokens: a tile has one row of 64 numbers for each feature (or each number of a value). So what belongs to a
 * token is a vector, and any width is served without padding. Only the state's rows are padded, to whole vectors. */

constexpr float kEmptyScale = -1e30f; /* of a state that has seen nothing; -inf less itself would be NaN */
constexpr float kLeastSum = 1e-30f;   /* a normaliser below it has seen nothing: its output is 0 */

typedef PlainCore<float> ScanCore;

/* exp(x) for x that is not above 0 by more than rounding. */
REGARD_INLINE Floats exponential(Floats x) {
  const Floats unit = broadcast(1.44269504f), rest = broadcast(1.92596303e-8f);
  const Floats exponent = rounded_product(x, unit), lost = multiply_add(x, rest, product_error(x, unit, exponent));
  return exponent < -1000000 ? Floats{} : power_of_two<6>(exponent, -lost); /* there what is lost may be NaN */
}

/* Some directions of the projection, or features where there is none. With opposites both features of each. */
struct Part {
  int64_t first, count;
};

struct CausalChunk {
  static constexpr int width = Simd<float>::width;
  static constexpr int64_t tile_row = kBlock;

  const regard_causal_scan &p;
  const int64_t half;   /* rows of the projection */
  const int64_t padded; /* numbers of a row of the state */

  int64_t batch = 0, head = 0, start = 0, count = 0; /* which tokens */
  float scale = 0, decay = 1;                        /* of the state: before the chunk, and over it */

  float *query, *key;              /* tiles of features */
  float *tokens;                   /* tile of a query or key */
  float *weights;                  /* [64][64] */
  float *values;                   /* [64][padded], zeros in the padding */
  float *state, *sums;             /* S [features][padded] and z */
  float *log, *high, *past, *last; /* of each token */
  float *level, *decays;           /* [64]; [padded] */

  explicit CausalChunk(const regard_causal_scan &problem)
      : p(problem),
        half(!p.projection ? 0
             : p.opposites ? p.features / 2
                           : p.features),
        padded((p.value_dim + width - 1) / width * width) {}

  Part whole() const { return {0, p.projection ? half : p.features}; }

  static float *floats(char **cursor, int64_t count) { return (float *)take_aligned(cursor, count * 4); }

  /* Scratch memory of this thread; `more` beside it, `extra` tiles' rows long. */
  bool allocate(float **more = nullptr, int64_t extra = 0) {
    char *size = nullptr;
    lay_out(&size);
    char *memory = (char *)regard::thread_scratch((size_t)(size - (char *)nullptr + extra * tile_row * 4));
    if (!memory) return false;
    lay_out(&memory);
    if (more) *more = (float *)memory;
    return true;
  }

  void lay_out(char **cursor) {
    query = floats(cursor, p.features * tile_row);
    key = floats(cursor, p.features * tile_row);
    tokens = floats(cursor, p.width * tile_row);
    weights = floats(cursor, tile_row * tile_row);
    values = floats(cursor, tile_row * padded);
    state = floats(cursor, p.features * padded);
    sums = floats(cursor, p.features);
    log = floats(cursor, 5 * tile_row);
    high = log + tile_row, past = high + tile_row, last = past + tile_row, level = last + tile_row;
    decays = floats(cursor, padded);
  }

  int64_t lanes() const { return (count + kGroup - 1) / kGroup * kGroup; }
  int columns() const { return (int)(lanes() / width); }
  template <class Number = float>
  Number *rows(const regard_rows &tensor) const {
    return row_of<Number>(tensor, batch, head, start);
  }

  /* ------------------------------------------------------------------------------------------ the state */

  int64_t row() const { return batch * p.heads + head; }

  void begin(int64_t row) {
    batch = row / p.heads, head = row % p.heads;
    memset(values, 0, (size_t)(tile_row * padded) * 4);
  }

  void load_first_state() { load_state(p.values, p.keys, p.scale[row()]); }

  /* Of this chunk's head, as callers keep it. */
  void load_state(const float *from_values, const float *from_keys, float from_scale) {
    bool empty = true;
    from_values += row() * p.features * p.value_dim, from_keys += row() * p.features;
    for (int64_t f = 0; f < p.features; ++f) {
      memcpy(state + f * padded, from_values + f * p.value_dim, (size_t)p.value_dim * 4);
      memset(state + f * padded + p.value_dim, 0, (size_t)(padded - p.value_dim) * 4);
      sums[f] = from_keys[f];
      empty = empty && sums[f] == 0;
    }
    scale = empty ? kEmptyScale : from_scale;
  }

  void save_state(float *to_values, float *to_keys) const {
    to_values += row() * p.features * p.value_dim, to_keys += row() * p.features;
    for (int64_t f = 0; f < p.features; ++f)
      memcpy(to_values + f * p.value_dim, state + f * padded, (size_t)p.value_dim * 4);
    memcpy(to_keys, sums, (size_t)p.features * 4);
  }

  /* S = decay S + tile (count rows of numbers), z = decay z + tile factor: with keys what comes after the chunk, with
   * queries the gradient of what came before it. */
  void add_to_state(const float *tile, const float *numbers, const float *factor, const Part &part) {
    for (int64_t i = 0; i < padded; ++i) decays[i] = decay;
    add_features(tile, numbers, factor, part.first, part.count);
    if (p.opposites) add_features(tile, numbers, factor, half + part.first, part.count);
  }

  void add_features(const float *tile, const float *numbers, const float *factor, int64_t first, int64_t features) {
    const Product<float> product{tile_row, 1, padded, padded, count, decays};
    tile += first * tile_row;
    multiply<ScanCore, kScaleAndAdd, true>(product, tile, features, numbers, (int)(padded / width),
                                           state + first * padded);
    for (int64_t f = 0; f < features; f += width) {
      Floats each[width];
      const int64_t here = features - f < width ? features - f : width;
      for (int64_t i = 0; i < width; ++i) {
        each[i] = Floats{};
        for (int64_t lane = 0; i < here && lane < lanes(); lane += width)
          each[i] = multiply_add(load(tile + (f + i) * tile_row + lane), load(factor + lane), each[i]);
      }
      float added[width];
      store(added, sums_of_each(each));
      for (int64_t i = 0; i < here; ++i) sums[first + f + i] = sums[first + f + i] * decay + added[i];
    }
  }

  /* ----------------------------------------------------------------------------------------- the tokens */

  void take(int64_t first) {
    start = first;
    count = p.length - first < kBlock ? p.length - first : kBlock;
  }

  /* Features of the chunk's rows of a tensor, over exp(level); `level` stays as it is where they come ready. */
  void load_features(const regard_rows &tensor, float *tile, const Part &part) {
    const float *from = rows(tensor);
    if (!p.projection)
      return rows_to_tile(from + part.first, tensor.row_stride * 4, count, part.count, tile + part.first * tile_row);
    rows_to_tile(from, tensor.row_stride * 4, count, p.width, tokens);
    product((const float *)p.projection, p.width, 1, half, p.width, tokens, tile);
    for (int64_t lane = 0; lane < lanes(); lane += width) exponentials(tile + lane, level + lane, part);
  }

  void exponentials(float *tile, float *levels, const Part &part) const {
    Floats highest = p.opposites ? Floats{} : load(tile);
    for (int64_t f = 0; f < half; ++f) {
      const Floats x = load(tile + f * tile_row);
      highest = larger(highest, p.opposites ? larger(x, -x) : x);
    }
    store(levels, highest);
    for (int64_t f = part.first; f < part.first + part.count; ++f) {
      const Floats x = load(tile + f * tile_row);
      store(tile + f * tile_row, exponential(x - highest));
      if (p.opposites) store(tile + (half + f) * tile_row, exponential(-x - highest));
    }
  }

  void load_values(const regard_rows &tensor) {
    const float *from = rows(tensor);
    for (int64_t j = 0; j < count; ++j)
      memcpy(values + j * padded, from + j * tensor.row_stride, (size_t)p.value_dim * 4);
  }

  /* Changes the state to that behind the chunk, whose keys and weights are loaded. */
  void read_keys(const Part &part) {
    load_values(p.value);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < padded; i += width)
        store(values + j * padded + i, load(values + j * padded + i) * last[j]);
    add_to_state(key, values, last, part);
  }

  /* The factors of the log weights; `level` is that of the keys. Leaves the chunk's own scale in `scale`. */
  void load_weights() {
    const float before = scale;
    for (int64_t j = 0; j < lanes(); ++j) past[j] = 1, last[j] = j < count;
    decay = 1;
    if (!p.log_weight.data) return;
    const float *from = rows(p.log_weight);
    float highest = before;
    for (int64_t j = 0; j < lanes(); ++j) {
      log[j] = j < count ? from[j * p.log_weight.row_stride] + (p.projection ? level[j] : 0) : -INFINITY;
      highest = log[j] > highest ? log[j] : highest;
      high[j] = highest;
    }
    for (int64_t lane = 0; lane < lanes(); lane += width) {
      store(past + lane, exponential(before - load(high + lane)));
      store(last + lane, exponential(load(log + lane) - highest));
    }
    decay = exponential(broadcast(before - highest))[0];
    scale = highest;
  }

  /* --------------------------------------------------------------------------------------- the triangle */

  /* Row j, lane i of `weights`: (it + added_i) pair_ij where j <= i, and 0 elsewhere in the groups of the diagonal. */
  void weigh_by_key(const float *added) {
    for (int64_t j = 0; j < count; ++j)
      for (int64_t lane = j / kGroup * kGroup; lane < lanes(); lane += width) {
        const Floats pair = p.log_weight.data ? exponential(log[j] - load(high + lane)) : broadcast(1.0f);
        const Floats more = added ? load(added + lane) : Floats{};
        weigh(weights + j * tile_row + lane, more, pair, ~0ull << j, lane);
      }
  }

  /* Row i, lane j. */
  void weigh_by_query(const float *added) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t lane = 0; lane < (i / kGroup + 1) * kGroup; lane += width) {
        const Floats pair = p.log_weight.data ? exponential(load(log + lane) - high[i]) : broadcast(1.0f);
        weigh(weights + i * tile_row + lane, broadcast(added ? added[i] : 0), pair, ~0ull >> (63 - i), lane);
      }
  }

  /* A later key may be larger than anything so far: what exp would make of it is not looked at. */
  static REGARD_INLINE void weigh(float *at, Floats more, Floats pair, uint64_t seen, int64_t lane) {
    store(at, where_bit(seen, (int)lane, (load(at) + more) * pair, Floats{}));
  }

  /* weights[j][i] = sum over `steps` rows of left and right, in the groups where j <= i may be. */
  void products_by_key(const float *left, const float *right, int64_t steps) {
    const Product<float> product{1, tile_row, tile_row, tile_row, steps, nullptr};
    for (int64_t j = 0; j < count; j += kGroup)
      multiply<ScanCore, kStore, false>(product, left + j, rows_from(j), right + j, columns() - (int)(j / width),
                                        weights + j * tile_row + j);
  }

  /* weights[i][j], in the groups where j <= i may be. */
  void products_by_query(const float *left, const float *right, int64_t steps) {
    const Product<float> product{1, tile_row, tile_row, tile_row, steps, nullptr};
    for (int64_t i = 0; i < count; i += kGroup)
      multiply<ScanCore, kStore, false>(product, left + i, rows_from(i), right, (int)((i + kGroup) / width),
                                        weights + i * tile_row);
  }

  /* `to`[r][i] += sum over j <= i of left (row r, step j) weights[j][i]. */
  void add_keys(const float *left, int64_t left_row, int64_t left_step, int64_t count_rows, float *to) const {
    for (int64_t i = 0; i < count; i += kGroup) {
      const Product<float> product{left_row, left_step, tile_row, tile_row, i + rows_from(i), nullptr};
      multiply<ScanCore, kAdd, false>(product, left, count_rows, weights + i, kGroup / width, to + i);
    }
  }

  /* `to`[r][j] += sum over i >= j of left (row r, step i) weights[i][j]. */
  void add_queries(const float *left, int64_t left_row, int64_t left_step, int64_t count_rows, float *to) const {
    for (int64_t j = 0; j < count; j += kGroup) {
      const Product<float> product{left_row, left_step, tile_row, tile_row, count - j, nullptr};
      multiply<ScanCore, kAdd, false>(product, left + j * left_step, count_rows, weights + j * tile_row + j,
                                      kGroup / width, to + j);
    }
  }

  int64_t rows_from(int64_t first) const { return count - first < kGroup ? count - first : kGroup; }

  /* `to`[r][token] = sum over `steps` of left (row r) right[step][token]. */
  void product(const float *left, int64_t left_row, int64_t left_step, int64_t count_rows, int64_t steps,
               const float *right, float *to) const {
    const Product<float> product{left_row, left_step, tile_row, tile_row, steps, nullptr};
    multiply<ScanCore, kStore, false>(product, left, count_rows, right, columns(), to);
  }

  /* Each row of a tile times a factor of each token. */
  void scale_lanes(float *tile, int64_t count_rows, const float *factor) const {
    for (int64_t r = 0; r < count_rows; ++r)
      for (int64_t lane = 0; lane < lanes(); lane += width)
        store(tile + r * tile_row + lane, load(tile + r * tile_row + lane) * load(factor + lane));
  }
};
