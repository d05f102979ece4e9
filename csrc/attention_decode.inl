/* attention_decode.inl: a few queries against many keys, as when text is generated with a cache.
 *
 * The queries of all heads that share a key head are met at once, so that each key and value is read from memory once.
 * Many queries meet keys that are transposed first, so that lanes are keys; for a few it is cheaper to sum products over
 * lanes. The keys are cut into stretches of a fixed length for the threads; each stretch gives its own softmax, and
 * these are merged by their maxima and sums in order (Dao et al. 2023, "Flash-Decoding"). */

constexpr int64_t kMostDecodedRows = 64; /* queries of all heads that share a key head */
constexpr int64_t kStretch = 512;        /* keys of a task */
constexpr int64_t kAheadBytes = 6144;    /* so far ahead of the work memory is asked: 4 and 8 KB are slower */
constexpr int64_t kManyRows = 8;         /* from so many queries on, transposing the keys pays */

/* Is this problem one for `Decode`: few queries, and no option that belongs to single pairs? */
bool fits_decode(const regard_problem &p) {
  const int64_t rows = p.q_len * (p.heads / p.kv_heads);
  const bool few = p.q_len <= 4 || (p.q_len <= kGroup && p.batch * p.heads < 2 * p.threads);
  return few && rows <= kMostDecodedRows && p.kv_len >= 64 && is_plain(p) && !p.mask.words && !p.mask.tile_first &&
         (!p.mask.intervals || p.mask.interval_count == 1) && !p.distance_values.data && !p.drop_below;
}

template <class Core, class Storage>
struct Decode {
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Unit Unit;
  typedef Units<Core, Storage> Pack;
  typedef VectorOf<Scalar> Vector;
  static constexpr int width = Simd<Scalar>::width;

  const regard_problem &p;
  const regard_forward_results &results;
  const int64_t group, rows;
  /* Are products summed over lanes? Not where a gradient may follow: backward's scores are to be the same to the last
   * bit, and it sums them one element after the other. */
  const bool few;
  const int64_t tile_keys; /* at a time: as many as possible, for memory likes to be read in one line */
  const int64_t units, columns, stretches;
  const bool raw_keys, raw_values;
  Scalar *parts = nullptr; /* of each stretch: [rows][columns] sums of values, [rows] maxima, [rows] sums */
  int finite = 1, status = REGARD_OK;

  Decode(const regard_problem &problem, const regard_forward_results &to)
      : p(problem),
        results(to),
        group(problem.heads / problem.kv_heads),
        rows(problem.q_len * group),
        few(rows < kManyRows && !to.lse_low),
        tile_keys(few ? kStretch : kBlock),
        units(units_of(problem.head_dim, few)),
        columns((problem.value_dim + width - 1) / width * width),
        stretches((problem.kv_len + kStretch - 1) / kStretch),
        raw_keys(Pack::is_raw && problem.head_dim == units * Core::step_width),
        raw_values(Pack::is_raw && Core::step_width == 1 && problem.value_dim % width == 0) {}

  /* In a row of queries or keys; in whole vectors where products are summed over lanes. */
  static int64_t units_of(int64_t head_dim, bool whole_vectors) {
    const int64_t some = (head_dim + Core::step_width - 1) / Core::step_width;
    return whole_vectors ? (some + width - 1) / width * width : some;
  }

  int64_t part_size() const { return rows * (columns + 2); }

  static void run_stretch(void *self, int64_t task) { ((Decode *)self)->stretch(task); }
  static void run_merge(void *self, int64_t task) { ((Decode *)self)->merge(task); }

  int run() {
    const int64_t owners = p.batch * p.kv_heads, bytes = owners * stretches * part_size() * (int64_t)sizeof(Scalar);
    parts = (Scalar *)aligned_alloc(64, (size_t)((bytes + 63) / 64 * 64));
    if (!parts) return REGARD_NO_MEMORY;
    regard::for_each_task(p.threads, owners * stretches, run_stretch, this);
    if (status == REGARD_OK) regard::for_each_task(1, owners, run_merge, this);
    free(parts);
    if (status != REGARD_OK) return status;
    return finite ? REGARD_OK : REGARD_NOT_FINITE;
  }

  struct Scratch {
    Unit *queries;          /* [rows][units] */
    Unit *keys;             /* [units][64] */
    Unit *packed;           /* rows of 64 keys or values as units */
    Scalar *scores;         /* [rows][tile_keys] */
    Unit *weights;          /* [rows][tile_keys in units] */
    int64_t *starts, *ends; /* of the keys each row sees */
  };

  int64_t lay_out(Scratch *s, char *memory) const {
    char *cursor = memory;
    const int64_t most_units = units > columns ? units : columns;
    s->queries = (Unit *)take_aligned(&cursor, rows * units * (int64_t)sizeof(Unit));
    s->keys = (Unit *)take_aligned(&cursor, units * kBlock * (int64_t)sizeof(Unit));
    s->packed = (Unit *)take_aligned(&cursor, kBlock * most_units * (int64_t)sizeof(Unit));
    s->scores = (Scalar *)take_aligned(&cursor, rows * tile_keys * (int64_t)sizeof(Scalar));
    s->weights = (Unit *)take_aligned(&cursor, Core::step_width == 1 ? 0 : rows * tile_keys * (int64_t)sizeof(Unit));
    s->starts = (int64_t *)take_aligned(&cursor, rows * 8);
    s->ends = (int64_t *)take_aligned(&cursor, rows * 8);
    return cursor - memory;
  }

  void stretch(int64_t task) {
    Scratch s;
    char *memory = (char *)regard::thread_scratch((size_t)lay_out(&s, nullptr));
    if (!memory) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    lay_out(&s, memory);
    const int64_t index = task % stretches, kv_head = task / stretches % p.kv_heads,
                  batch = task / stretches / p.kv_heads;
    Scalar *sums_of_values = parts + task * part_size(), *highest = sums_of_values + rows * columns,
           *sums = highest + rows;
    memset(sums_of_values, 0, (size_t)(rows * columns) * sizeof(Scalar));
    int64_t first = index * kStretch, end = first + kStretch < p.kv_len ? first + kStretch : p.kv_len;
    int64_t some_first = p.kv_len, some_end = 0;
    for (int64_t row = 0; row < rows; ++row) {
      highest[row] = -(Scalar)INFINITY;
      sums[row] = 0;
      const int64_t head = kv_head * group + row / p.q_len;
      find_range(batch, head, row % p.q_len, &s.starts[row], &s.ends[row]);
      if (s.starts[row] < s.ends[row] && s.starts[row] < some_first) some_first = s.starts[row];
      if (s.ends[row] > some_end) some_end = s.ends[row];
      pack_padded(row_of<Storage>(p.query, batch, head, row % p.q_len), s.queries + row * units);
    }
    if (first < some_first) first = some_first;
    if (end > some_end) end = some_end;
    for (int64_t key = first; key < end; key += tile_keys)
      tile(s, batch, kv_head, key, key + tile_keys < end ? key + tile_keys : end, sums_of_values, highest, sums);
  }

  void find_range(int64_t batch, int64_t head, int64_t query, int64_t *start, int64_t *end) const {
    const regard_mask &mask = p.mask;
    const int64_t place = query + mask.offset;
    *start = mask.before == REGARD_UNLIMITED ? 0 : clamp_key(place - mask.before, p.kv_len);
    *end = mask.after == REGARD_UNLIMITED ? p.kv_len : clamp_key(place + mask.after + 1, p.kv_len);
    if (!mask.intervals) return;
    const int32_t *starts = mask.intervals + batch * mask.interval_batch_stride + head * mask.interval_head_stride;
    if (starts[query] > *start) *start = starts[query];
    if (starts[p.q_len + query] < *end) *end = starts[p.q_len + query];
  }

  void tile(const Scratch &s, int64_t batch, int64_t kv_head, int64_t first, int64_t end, Scalar *sums_of_values,
            Scalar *highest, Scalar *sums) const {
    const int64_t keys = end - first, lanes = (keys + kGroup - 1) / kGroup * kGroup;
    match(s, row_of<Storage>(p.key, batch, kv_head, first), row_of<Storage>(p.value, batch, kv_head, first), keys,
          (int)(lanes / width));
    for (int64_t row = 0; row < rows; ++row) {
      Scalar *scores = s.scores + row * tile_keys;
      const int64_t unseen = s.starts[row] - first, seen = s.ends[row] < end ? s.ends[row] - first : keys;
      for (int64_t lane = 0; lane < unseen && lane < lanes; ++lane) scores[lane] = -(Scalar)INFINITY;
      for (int64_t lane = seen > 0 ? seen : 0; lane < lanes; ++lane) scores[lane] = -(Scalar)INFINITY;
      const Scalar factor = weigh(scores, lanes, &highest[row], &sums[row]);
      if (factor != 1)
        for (int64_t i = 0; i < columns; ++i) sums_of_values[row * columns + i] *= factor;
#if defined(REGARD_HAS_PAIRS)
      if constexpr (Core::step_width == 2)
        for (int64_t lane = 0; lane < lanes; lane += width)
          store_halves(s.weights + (row * tile_keys + lane) / 2, load(scores + lane));
#endif
    }
    combine(s, row_of<Storage>(p.value, batch, kv_head, first), keys, sums_of_values);
  }

  /* Memory is what decoding waits for, so while some keys are transposed their values and the keys of the next tile are
   * asked for. */
  void ask_for(const Storage *key_rows, const Storage *value_rows, int64_t key, int64_t end) const {
    for (; key < end; ++key) {
      prefetch(value_rows + key * p.value.row_stride, p.value_dim * (int64_t)sizeof(Storage));
      prefetch(key_rows + (key + kBlock) * p.key.row_stride, p.head_dim * (int64_t)sizeof(Storage));
    }
  }

  /* What memory is asked for ahead of the work: keys or values of one tile. */
  struct Coming {
    const Storage *rows;
    int64_t stride, width, count;

    int64_t distance() const {
      const int64_t some = kAheadBytes / (width * (int64_t)sizeof(Storage)) / 8 * 8;
      return some < 8 ? 8 : some > kBlock ? kBlock : some;
    }
    /* Nothing beyond the tile: what follows is for another thread. */
    void ask(int64_t first, int64_t some) const {
      for (int64_t row = first; row < first + some && row < count; ++row)
        prefetch(rows + row * stride, width * (int64_t)sizeof(Storage));
    }
  };

  void match(const Scratch &s, const Storage *key_rows, const Storage *value_rows, int64_t keys,
             int tile_columns) const {
    if (few) {
      const Coming coming_keys{key_rows, p.key.row_stride, p.head_dim, keys};
      const Coming coming_values{value_rows, p.value.row_stride, p.value_dim, keys};
      for (int64_t key = 0; key < keys; key += kGroup) {
        coming_keys.ask(key + coming_keys.distance(), kGroup);
        if (key + kGroup >= keys) coming_values.ask(0, coming_values.distance());
        match_few(s, key_rows + key * p.key.row_stride, keys - key < kGroup ? keys - key : kGroup, s.scores + key);
      }
      return;
    }
    for (int64_t some = 0; some < keys; some += kGroup) {
      const int64_t end = some + kGroup < keys ? some + kGroup : keys;
      ask_for(key_rows, value_rows, some, end);
      const Storage *rows_of_group = key_rows + some * p.key.row_stride;
      if (raw_keys) {
        rows_to_tile(rows_of_group, p.key.row_stride * (int64_t)sizeof(Storage), end - some, units, s.keys + some);
      } else {
        for (int64_t key = 0; key < end - some; ++key)
          Pack::pack_row(rows_of_group + key * p.key.row_stride, p.head_dim, s.packed + key * units);
        rows_to_tile(s.packed, units * (int64_t)sizeof(Unit), end - some, units, s.keys + some);
      }
    }
    const Product<Scalar> product{units, 1, kBlock, kBlock, units, nullptr};
    multiply<Core, kStore, true>(product, s.queries, rows, s.keys, tile_columns, s.scores);
  }

  /* Scores of a few rows with up to 16 keys: products are summed over lanes. */
  void match_few(const Scratch &s, const Storage *key_rows, int64_t keys, Scalar *scores) const {
    const Unit *rows_of_keys = (const Unit *)key_rows;
    int64_t stride = p.key.row_stride * (int64_t)sizeof(Storage);
    if (!raw_keys) {
      for (int64_t key = 0; key < keys; ++key) pack_padded(key_rows + key * p.key.row_stride, s.packed + key * units);
      rows_of_keys = s.packed;
      stride = units * (int64_t)sizeof(Unit);
    }
    int64_t row = 0;
    if (width >= 4)
      for (; row + 4 <= rows; row += 4) match_rows<width >= 4 ? 4 : 1>(s, row, rows_of_keys, stride, keys, scores);
    for (; row + 2 <= rows; row += 2) match_rows<2>(s, row, rows_of_keys, stride, keys, scores);
    for (; row < rows; ++row) match_rows<1>(s, row, rows_of_keys, stride, keys, scores);
  }

  /* R rows with as many keys at a time as give one sum to each lane. */
  template <int R>
  void match_rows(const Scratch &s, int64_t row, const Unit *key_rows, int64_t stride, int64_t keys,
                  Scalar *scores) const {
    constexpr int K = width / R;
    const Unit *queries = s.queries + row * units;
    for (int64_t key = 0; key < keys; key += K) {
      const Unit *from[K];
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k)
        from[k] = (const Unit *)((const char *)key_rows + (key + k < keys ? key + k : keys - 1) * stride);
      Vector sums[width];
#pragma GCC unroll 16
      for (int i = 0; i < width; ++i) sums[i] = Vector{};
      for (int64_t unit = 0; unit < units; unit += width) {
        typename Core::Operand left[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) left[r] = Core::operand(queries + r * units + unit);
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) {
          const typename Core::Operand right = Core::operand(from[k] + unit);
#pragma GCC unroll 16
          for (int r = 0; r < R; ++r) sums[r * K + k] = Core::step(sums[r * K + k], left[r], right);
        }
      }
      const Vector found = sums_of_each(sums);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        memcpy(scores + (row + r) * tile_keys + key, (const Scalar *)&found + r * K, K * sizeof(Scalar));
    }
  }

  void pack_padded(const Storage *from, Unit *to) const {
    Pack::pack_row(from, p.head_dim, to);
    const int64_t filled = (p.head_dim + Core::step_width - 1) / Core::step_width;
    if (filled < units) memset(to + filled, 0, (size_t)(units - filled) * sizeof(Unit));
  }

  /* Scores of one row to weights; returns what the sums so far shrink by. */
  Scalar weigh(Scalar *scores, int64_t lanes, Scalar *highest, Scalar *sum) const {
    const Scalar unit = unit_of<Scalar>(p);
    Vector most = load(scores);
    for (int64_t lane = width; lane < lanes; lane += width) most = larger(most, load(scores + lane));
    Scalar new_highest = *highest;
    for (int i = 0; i < width; ++i) new_highest = most[i] > new_highest ? most[i] : new_highest;
    const Scalar top = new_highest == -(Scalar)INFINITY ? Scalar(0) : new_highest;
    const Vector factor = power_of_two<6>(broadcast((*highest - top) * unit));
    Vector total = Vector{};
    for (int64_t lane = 0; lane < lanes; lane += width) {
      const Vector weight = power_of_two<6>((load(scores + lane) - broadcast(top)) * broadcast(unit));
      total = total + weight;
      store(scores + lane, weight);
    }
    Scalar added = 0;
    for (int i = 0; i < width; ++i) added += total[i];
    *sum = *sum * factor[0] + added;
    *highest = new_highest;
    return factor[0];
  }

  void combine(const Scratch &s, const Storage *value_rows, int64_t keys, Scalar *sums_of_values) const {
    const Unit *weights = Core::step_width == 1 ? (const Unit *)s.scores : s.weights;
    if (!raw_values && columns != p.value_dim) memset(s.packed, 0, (size_t)(kBlock * columns) * sizeof(Unit));
    const Coming coming{value_rows, p.value.row_stride, p.value_dim, keys};
    for (int64_t key = 0; key < keys; key += kGroup) {
      const int64_t some = keys - key < kGroup ? keys - key : kGroup;
      const Storage *from = value_rows + key * p.value.row_stride;
      if (!raw_values) coming.ask(key + coming.distance(), kGroup); /* read in order, memory needs no asking */
      if (!raw_values) Pack::pack_steps(from, p.value.row_stride, some, p.value_dim, s.packed, columns);
      add_values(weights + key / Core::step_width, raw_values ? (const Unit *)from : s.packed,
                 raw_values ? p.value.row_stride : columns, some, sums_of_values);
    }
  }

  void add_values(const Unit *weights, const Unit *values, int64_t stride, int64_t keys, Scalar *sums_of_values) const {
    const int64_t steps = (keys + Core::step_width - 1) / Core::step_width;
    const Product<Scalar> product{tile_keys / Core::step_width, 1, stride, columns, steps, nullptr};
    multiply<Core, kAdd, true>(product, weights, rows, values, (int)(columns / width), sums_of_values);
  }

  void merge(int64_t owner) {
    const int64_t kv_head = owner % p.kv_heads, batch = owner / p.kv_heads;
    const double unit = (double)unit_of<Scalar>(p);
    Scalar probe = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t head = kv_head * group + row / p.q_len, query = row % p.q_len;
      Scalar *first = parts + owner * stretches * part_size();
      Scalar highest = -(Scalar)INFINITY;
      for (int64_t i = 0; i < stretches; ++i) {
        const Scalar other = first[i * part_size() + rows * columns + row];
        if (!(other <= highest)) highest = other;
      }
      int64_t start, end;
      find_range(batch, head, query, &start, &end);
      const bool empty = start >= end;
      Normaliser n(logarithm_of(p, highest), 0);
      if (p.sink && !empty) n.take_in((double)((const Scalar *)p.sink)[head]);
      Scalar *to = first + row * columns; /* the first stretch takes up the others */
      for (int64_t i = 0; i < stretches; ++i) {
        const Scalar *part = first + i * part_size();
        const Scalar mine = part[rows * columns + row];
        const double share = mine == -(Scalar)INFINITY ? 0.0 : n.shrunk * exp2(((double)mine - (double)highest) * unit);
        n.weights += share * (double)part[rows * columns + rows + row];
        for (int64_t c = 0; c < p.value_dim; ++c)
          to[c] = (i ? to[c] : Scalar(0)) + (Scalar)share * part[row * columns + c];
      }
      const Scalar shrink = empty ? Scalar(0) : (Scalar)(1 / n.sum()); /* NaN where every score is -inf */
      for (int64_t c = 0; c < p.value_dim; ++c) to[c] *= shrink;
      narrow(to, p.value_dim, row_of<Storage>(results.output, batch, head, query), &probe);
      Scalar lse = -(Scalar)INFINITY, low = 0;
      if (!empty) split_lse(n.top, n.sum(), &lse, &low);
      const int64_t place = (batch * p.heads + head) * p.q_len + query;
      if (results.lse) ((Scalar *)results.lse)[place] = lse;
      if (results.lse_low) ((Scalar *)results.lse_low)[place] = low;
    }
    if (probe != 0 || probe != probe) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
  }
};
