/* attention_forward.inl: one pass over the keys of a block of 64 queries, softmax on the way.
 *
 * S^T = K Q^T, weights 2^(S - max), O^T = O^T 2^(old max - max) + V^T P^T; lanes are queries throughout, so that
 * maxima, sums and rescaling need no crossing of lanes (Milakov and Gimelshein 2018; Dao et al. 2022). */

template <class Core>
struct ForwardTiles { /* the keys of a tile fill half of the first cache beside what they meet */
  static constexpr int64_t keys = Core::step_width == 2 ? 256 : 128;
};

template <class Core, class Storage>
struct Forward {
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Unit Unit;
  typedef Units<Core, Storage> Pack;
  static constexpr int width = Simd<Scalar>::width;
  static constexpr int64_t most_keys = ForwardTiles<Core>::keys;

  const regard_problem &p;
  const regard_forward_results &results;
  const int64_t query_units, blocks;
  const bool plain, raw_keys, raw_values;
  bool late_first = true; /* blocks of many keys come first, so that no thread waits for one of them at the end */
  int finite = 1;
  int status = REGARD_OK;

  Forward(const regard_problem &problem, const regard_forward_results &to)
      : p(problem),
        results(to),
        query_units((problem.head_dim + Core::step_width - 1) / Core::step_width),
        blocks((problem.q_len + kBlock - 1) / kBlock),
        plain(is_plain(problem)),
        raw_keys(Pack::is_raw && problem.head_dim % Core::step_width == 0 &&
                 problem.key.row_stride % Core::step_width == 0),
        raw_values(Pack::is_raw && Core::step_width == 1) {}

  struct Scratch {
    Unit *queries;                                   /* [query_units][64] */
    Unit *keys;                                      /* [most_keys][query_units], when packed */
    Unit *values;                                    /* [most_keys][value_dim], when packed */
    Scalar *scores;                                  /* [most_keys][64]; the weights take its place */
    Scalar *output;                                  /* [value_dim][64] */
    Scalar *added;                                   /* [most_keys][64] */
    Scalar *distance_queries;                        /* [head_dim][64] */
    Scalar *distance_tile;                           /* [most_keys + 63][64] */
    Scalar *highest, *sums, *factors, *tile_highest; /* [64] */
    Scalar *rows;                                    /* [64][value_dim] */
    uint64_t *words, *kept;
  };

  int64_t lay_out(Scratch *s, char *memory) const {
    char *cursor = memory;
    const auto take = [&](int64_t count, int64_t size) { return take_aligned(&cursor, count * size); };
    s->queries = (Unit *)take(query_units * kBlock, sizeof(Unit));
    s->scores = (Scalar *)take(most_keys * kBlock, sizeof(Scalar));
    s->output = (Scalar *)take(p.value_dim * kBlock, sizeof(Scalar));
    s->keys = (Unit *)take(raw_keys ? 0 : most_keys * query_units, sizeof(Unit));
    s->values = (Unit *)take(raw_values ? 0 : most_keys * p.value_dim, sizeof(Unit));
    s->added = (Scalar *)take(p.bias.data ? most_keys * kBlock : 0, sizeof(Scalar));
    const bool tables = p.distance_keys.data || p.distance_values.data;
    s->distance_queries = (Scalar *)take(p.distance_keys.data ? p.head_dim * kBlock : 0, sizeof(Scalar));
    s->distance_tile = (Scalar *)take(tables ? (most_keys + kBlock) * kBlock : 0, sizeof(Scalar));
    s->highest = (Scalar *)take(kBlock, sizeof(Scalar));
    s->sums = (Scalar *)take(kBlock, sizeof(Scalar));
    s->factors = (Scalar *)take(kBlock, sizeof(Scalar));
    s->tile_highest = (Scalar *)take(kBlock, sizeof(Scalar));
    s->rows = (Scalar *)take(kBlock * (p.value_dim > p.head_dim ? p.value_dim : p.head_dim), sizeof(Scalar));
    s->words = (uint64_t *)take(most_keys, sizeof(uint64_t));
    s->kept = (uint64_t *)take(p.drop_below ? most_keys : 0, sizeof(uint64_t));
    return cursor - memory;
  }

  static void run_task(void *self, int64_t task) { ((Forward *)self)->block(task); }

  /* The keys that a block of the first head meets. */
  int64_t keys_of(int64_t block) const {
    int64_t keys = 0;
    if (p.batch && p.heads) Visible(p, 0, 0, block).for_each_run([&](const Run &run) { keys += run.end - run.first; });
    return keys;
  }

  int run() {
    if (blocks > 4) late_first = keys_of(0) <= keys_of(blocks - 1);
    regard::for_each_task(p.threads, p.batch * p.heads * blocks, run_task, this);
    if (status != REGARD_OK) return status;
    return finite ? REGARD_OK : REGARD_NOT_FINITE;
  }

  void block(int64_t task) {
    Scratch s;
    char *memory = (char *)regard::thread_scratch((size_t)lay_out(&s, nullptr));
    if (!memory) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    lay_out(&s, memory);
    const int64_t index = late_first ? blocks - 1 - task % blocks : task % blocks, head = task / blocks % p.heads,
                  batch = task / blocks / p.heads;
    const Visible visible(p, batch, head, index);
    begin(s, visible);
    visible.for_each_run([&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys)
        tile(s, visible, run, key, key + most_keys < run.end ? key + most_keys : run.end);
    });
    finish(s, visible);
  }

  int lanes(const Visible &v) const { return v.groups() * kGroup; }

  void begin(const Scratch &s, const Visible &v) const {
    const Storage *queries = row_of<Storage>(p.query, v.batch, v.head, v.block * kBlock);
    if (Pack::is_raw && p.head_dim % Core::step_width == 0) {
      rows_to_tile(queries, p.query.row_stride * (int64_t)sizeof(Storage), v.rows, query_units, s.queries);
    } else {
      for (int64_t row = 0; row < v.rows; ++row)
        Pack::pack_row(queries + row * p.query.row_stride, p.head_dim, (Unit *)s.rows + row * query_units);
      rows_to_tile(s.rows, query_units * (int64_t)sizeof(Unit), v.rows, query_units, s.queries);
    }
    if (p.distance_keys.data) {
      const Scalar *met = row_of<Scalar>(p.distance_query, v.batch, v.head, v.block * kBlock);
      rows_to_tile(met, p.distance_query.row_stride * (int64_t)sizeof(Scalar), v.rows, p.head_dim, s.distance_queries);
    }
    for (int lane = 0; lane < kBlock; ++lane) {
      s.highest[lane] = -(Scalar)INFINITY;
      s.sums[lane] = 0;
    }
    for (int64_t i = 0; i < p.value_dim; ++i) memset(s.output + i * kBlock, 0, (size_t)lanes(v) * sizeof(Scalar));
  }

  void tile(const Scratch &s, const Visible &v, const Run &run, int64_t first, int64_t end) const {
    const int64_t keys = end - first, kv_head = v.head / (p.heads / p.kv_heads);
    const int first_lane = run.first_group * kGroup, columns = (run.end_group - run.first_group) * kGroup / width;
    const Storage *key_rows = row_of<Storage>(p.key, v.batch, kv_head, first);
    const Storage *value_rows = row_of<Storage>(p.value, v.batch, kv_head, first);
    match(s, run, key_rows, keys);
    const ScoreTile<Scalar> at{p, v.batch, v.head, v.block * kBlock, v.rows, s.scores, s.added, nullptr, nullptr};
    if (!plain) position_and_finish(s, at, run, first, end);
    if (run.masked()) {
      visible_words(run, first, end, s.words);
      mask_scores(s.scores, s.words, keys, run.first_group, run.end_group);
    }
    if (!plain || run.masked()) {
      memcpy(s.tile_highest, s.highest, kBlock * sizeof(Scalar));
      raise_to_scores(s.tile_highest, s.scores, keys, run.first_group, run.end_group);
    }
    const bool in_one = !p.drop_below && !p.distance_values.data;
    const bool exact = Core::step_width == 1 && (!plain || !kFused);
    if (!in_one || exact)
      softmax<false, true>(s, keys, first_lane, columns);
    else
      softmax<true, false>(s, keys, first_lane, columns);
    if (p.drop_below) {
      dropout_words(p, v.batch, v.head, v.block * kBlock, first, end, s.kept);
      drop_weights(p, s.scores, s.kept, keys, run.first_group, run.end_group);
    }
    if (p.distance_values.data) spread_by_distance(s.distance_tile, s.scores, keys, run.first_group, run.end_group);
    if (!in_one) pack_weights(s, keys, first_lane, columns);
    combine(s, value_rows, keys, first_lane, columns);
    if (p.distance_values.data) {
      const Scalar *table = (const Scalar *)p.distance_values.data + v.head * p.distance_values.head_stride;
      combine_distances(DistanceRows(p, v.block * kBlock, first, end), table, p.distance_values.row_stride, p.value_dim,
                        s.distance_tile, s.output);
    }
  }

  /* scores = K Q^T, and its maximum. */
  void match(const Scratch &s, const Run &run, const Storage *key_rows, int64_t keys) const {
    const int first_lane = run.first_group * kGroup, columns = (run.end_group - run.first_group) * kGroup / width;
    const Unit *units = (const Unit *)key_rows;
    int64_t stride = p.key.row_stride / Core::step_width;
    if (!raw_keys) {
      for (int64_t key = 0; key < keys; ++key)
        Pack::pack_row(key_rows + key * p.key.row_stride, p.head_dim, s.keys + key * query_units);
      units = s.keys;
      stride = query_units;
    }
    const bool with_max = plain && !run.masked();
    if (with_max) memcpy(s.tile_highest, s.highest, kBlock * sizeof(Scalar));
    const Product<Scalar> product{stride, 1,           kBlock,
                                  kBlock, query_units, with_max ? s.tile_highest + first_lane : nullptr};
    if (with_max)
      multiply<Core, kStoreAndMax, true>(product, units, keys, s.queries + first_lane, columns, s.scores + first_lane);
    else
      multiply<Core, kStore, true>(product, units, keys, s.queries + first_lane, columns, s.scores + first_lane);
  }

  void position_and_finish(const Scratch &s, ScoreTile<Scalar> at, const Run &run, int64_t first, int64_t end) const {
    if (p.distance_keys.data) {
      const Scalar *table = (const Scalar *)p.distance_keys.data + at.head * p.distance_keys.head_stride;
      match_distances(DistanceRows(p, at.first_query, first, end), table, p.distance_keys.row_stride, p.head_dim,
                      s.distance_queries, s.distance_tile);
      at.by_distance = s.distance_tile;
    }
    finish_scores(at, first, end, run.first_group, run.end_group);
  }

  /* scores to weights, in units of Core when `kPacked`; updates maxima, sums and the factors of what was summed before. */
  template <bool kPacked, bool kExact>
  void softmax(const Scratch &s, int64_t keys, int first_lane, int columns) const {
    const Scalar unit = unit_of<Scalar>(p);
    int column = 0;
    for (; column + kMostColumns <= columns; column += kMostColumns)
      softmax_columns<kPacked, kExact, kMostColumns>(s, keys, first_lane + column * width, unit);
    for (; column < columns; ++column) softmax_columns<kPacked, kExact, 1>(s, keys, first_lane + column * width, unit);
  }

  template <bool kPacked, bool kExact, int C>
  void softmax_columns(const Scratch &s, int64_t keys, int lane, Scalar unit) const {
    typedef typename Core::Vector Vector;
    Vector top[C], sums[C];
    const Vector never = broadcast(-(Scalar)INFINITY), units = broadcast(unit);
#pragma GCC unroll 4
    for (int v = 0; v < C; ++v) {
      const Vector old_highest = load(s.highest + lane + v * width), highest = load(s.tile_highest + lane + v * width);
      top[v] = highest == never ? Vector{} : highest; /* a row that has seen nothing yet */
      const Vector factor = power_of_two<6>((old_highest - top[v]) * units);
      store(s.factors + lane + v * width, factor);
      sums[v] = load(s.sums + lane + v * width) * factor;
      store(s.highest + lane + v * width, highest);
    }
    Scalar *row = s.scores + lane;
    if constexpr (Core::step_width == 2 && kPacked) {
      Unit *to = (Unit *)s.scores + lane;
      for (int64_t key = 0; key < keys; key += 2, row += 2 * kBlock, to += kBlock) {
        const bool both = key + 1 < keys;
#pragma GCC unroll 4
        for (int v = 0; v < C; ++v) {
          const Vector even = power_of_two<Core::precision>((load(row + v * width) - top[v]) * units);
          Vector odd = Vector{};
          if (both) odd = power_of_two<Core::precision>((load(row + kBlock + v * width) - top[v]) * units);
          sums[v] = sums[v] + (even + odd);
          store_pairs(to + v * width, even, odd);
        }
      }
    } else {
      for (int64_t key = 0; key < keys; ++key, row += kBlock) {
#pragma GCC unroll 4
        for (int v = 0; v < C; ++v) {
          const Vector score = load(row + v * width);
          const Vector weight = kExact ? weight_below(score, top[v], units) : power_of_two<6>((score - top[v]) * units);
          sums[v] = sums[v] + weight;
          store(row + v * width, weight);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < C; ++v) store(s.sums + lane + v * width, sums[v]);
  }

  /* Weights that softmax<false> left as numbers, to units. */
  void pack_weights(const Scratch &s, int64_t keys, int first_lane, int columns) const {
    if constexpr (Core::step_width == 2)
      for (int64_t key = 0; key < keys; key += 2)
        for (int lane = first_lane; lane < first_lane + columns * width; lane += width) {
          const Floats even = load(s.scores + key * kBlock + lane);
          const Floats odd = key + 1 < keys ? load(s.scores + (key + 1) * kBlock + lane) : Floats{};
          store_pairs((Unit *)s.scores + key / 2 * kBlock + lane, even, odd);
        }
  }

  /* output = output * factors + V^T weights. */
  void combine(const Scratch &s, const Storage *value_rows, int64_t keys, int first_lane, int columns) const {
    const Unit *units = (const Unit *)value_rows;
    int64_t stride = p.value.row_stride;
    if (!raw_values) {
      Pack::pack_steps(value_rows, p.value.row_stride, keys, p.value_dim, s.values, p.value_dim);
      units = s.values;
      stride = p.value_dim;
    }
    const int64_t steps = (keys + Core::step_width - 1) / Core::step_width;
    const Product<Scalar> product{1, stride, kBlock, kBlock, steps, s.factors + first_lane};
    multiply<Core, kScaleAndAdd, false>(product, units, p.value_dim, (const Unit *)s.scores + first_lane, columns,
                                        s.output + first_lane);
  }

  /* A bit for each query that may attend to something. A sum of 0 leaves that open: all its scores may be -inf. */
  uint64_t rows_that_see(const Scratch &s, const Visible &v) const {
    uint64_t seeing = 0, open = 0;
    for (int64_t lane = 0; lane < v.rows; ++lane) (s.sums[lane] == 0 ? open : seeing) |= 1ull << lane;
    if (open == 0) return seeing;
    v.for_each_run([&](const Run &run) {
      const uint64_t groups = ((run.end_group == kGroups ? 0 : 1ull << kGroup * run.end_group) - 1) &
                              ~((1ull << kGroup * run.first_group) - 1);
      for (int64_t key = run.first; key < run.end && (open & ~seeing); ++key) {
        uint64_t word = groups;
        if (run.masked())
          visible_words(Run{run.first, run.end, 0, 0, run.starts, run.ends, run.words}, key, key + 1, &word);
        for (int64_t lane = 0; lane < v.rows; ++lane)
          if ((open & ~seeing & groups & word) >> lane & 1 && bias_at(v, lane, key) != -(Scalar)INFINITY)
            seeing |= 1ull << lane;
      }
    });
    return seeing;
  }

  Scalar bias_at(const Visible &v, int64_t lane, int64_t key) const {
    if (!p.bias.data) return 0;
    return ((const Scalar *)p.bias.data)[v.batch * p.bias.batch_stride + v.head * p.bias.head_stride +
                                         (v.block * kBlock + lane) * p.bias.query_stride + key * p.bias.key_stride];
  }

  /* The output times the factors. NaN where some of it is not finite, or 0. */
  Scalar scale_output(const Scratch &s, int lanes) const {
    typename Core::Vector sums{};
    for (int64_t i = 0; i < p.value_dim; ++i)
      for (int lane = 0; lane < lanes; lane += width) {
        const typename Core::Vector scaled = load(s.output + i * kBlock + lane) * load(s.factors + lane);
        sums = sums + scaled * 0;
        store(s.output + i * kBlock + lane, scaled);
      }
    return sum_of_lanes(sums);
  }

  /* Divide by the sums, add the sink, write rows and lse. */
  void finish(const Scratch &s, const Visible &v) {
    const int64_t first_row = ((v.batch * p.heads) + v.head) * p.q_len + v.block * kBlock;
    const uint64_t seeing = rows_that_see(s, v);
    for (int64_t lane = 0; lane < lanes(v); ++lane) {
      const bool empty = !(seeing >> lane & 1);
      Normaliser n(logarithm_of(p, s.highest[lane]), (double)s.sums[lane]);
      if (p.sink && !empty) n.take_in((double)((const Scalar *)p.sink)[v.head]);
      s.factors[lane] = empty ? Scalar(0) : (Scalar)(n.shrunk / n.sum());
      if (lane >= v.rows || !results.lse) continue;
      Scalar lse = -(Scalar)INFINITY, low = 0;
      if (!empty) split_lse(n.top, n.sum(), &lse, &low);
      ((Scalar *)results.lse)[first_row + lane] = lse;
      if (results.lse_low) ((Scalar *)results.lse_low)[first_row + lane] = low;
    }
    Scalar probe = 0;
    Storage *to = row_of<Storage>(results.output, v.batch, v.head, v.block * kBlock);
    if (__is_same(Storage, Scalar) && v.rows == kBlock) { /* nothing to convert: at once to where it belongs */
      probe = scale_output(s, kBlock);
      tile_to_rows(s.output, kBlock, p.value_dim, (Scalar *)to, results.output.row_stride);
    } else {
      scale_output(s, lanes(v));
      tile_to_rows(s.output, v.rows, p.value_dim, s.rows, p.value_dim);
      for (int64_t row = 0; row < v.rows; ++row)
        narrow(s.rows + row * p.value_dim, p.value_dim, to + row * results.output.row_stride, &probe);
    }
    if (probe != 0 || probe != probe) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
  }
};
