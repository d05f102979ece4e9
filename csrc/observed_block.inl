/* observed_block.inl: the scores of a block of 64 queries with some keys, and what each row's weights are divided by.
 *
 * What `attention_observe.inl` looks at. Scores are in natural units here, since they are shown; and they are found
 * twice, once for the normalisers and once for the weights, so that nothing grows with queries times keys. Plain
 * arithmetic in the working type, for every storage: what is shown should be exact, not fast. */

template <class Storage>
struct ObservedBlock {
  typedef typename WorkingOf<Storage>::type Scalar;
  typedef VectorOf<Scalar> Vector;
  typedef PlainCore<Scalar> Core;
  typedef Units<Core, Storage> Pack;
  static constexpr int width = Simd<Scalar>::width;
  static constexpr int64_t most_keys = 128;

  const regard_problem &p;
  Scalar *queries;          /* [head_dim][64] */
  Scalar *keys;             /* [most_keys][head_dim], when they are not of the working type */
  Scalar *scores;           /* [most_keys][64]: -inf where a pair may not attend */
  Scalar *weights;          /* [most_keys][64] */
  Scalar *added;            /* [most_keys][64]: the bias */
  Scalar *distance_queries; /* [head_dim][64] */
  Scalar *distance_tile;    /* [most_keys + 63][64] */
  Scalar *rows;             /* [64][head_dim], when they are not of the working type */
  Scalar *highest, *sums;   /* [64]: the largest score, and the sum of exp(score - highest) */
  Scalar *highest_bias;     /* [64]: of the pairs that the mask lets attend */
  Scalar *tops, *inverses;  /* [64]: a weight is exp(score - top) times inverse */
  double *rests;            /* [64]: top + rest is the log of the normaliser, with the sink */
  double *totals;           /* [64]: what the weights of a row add up to; less than 1 with a sink */
  uint64_t *words;          /* [most_keys] */
  uint64_t seen;            /* the queries that may attend to something, as far as the mask says */

  explicit ObservedBlock(const regard_problem &problem) : p(problem) {}

  static REGARD_INLINE Vector exponential(Vector x) { return power_of_two<Core::precision>(x * (Scalar)kLog2E); }

  void lay_out(char **cursor) {
    const auto take = [&](int64_t count) { return (Scalar *)take_aligned(cursor, count * (int64_t)sizeof(Scalar)); };
    const int64_t tile = most_keys * kBlock;
    queries = take(p.head_dim * kBlock);
    scores = take(tile);
    weights = take(tile);
    keys = take(Pack::is_raw ? 0 : most_keys * p.head_dim);
    rows = take(Pack::is_raw ? 0 : kBlock * p.head_dim);
    added = take(p.bias.data ? tile : 0);
    distance_queries = take(p.distance_keys.data ? p.head_dim * kBlock : 0);
    distance_tile = take(p.distance_keys.data ? tile + kBlock * kBlock : 0);
    highest = take(kBlock);
    sums = take(kBlock);
    highest_bias = take(kBlock);
    tops = take(kBlock);
    inverses = take(kBlock);
    rests = (double *)take_aligned(cursor, kBlock * (int64_t)sizeof(double));
    totals = (double *)take_aligned(cursor, kBlock * (int64_t)sizeof(double));
    words = (uint64_t *)take_aligned(cursor, most_keys * (int64_t)sizeof(uint64_t));
  }

  void begin(const Visible &v) {
    const Storage *from = row_of<Storage>(p.query, v.batch, v.head, v.block * kBlock);
    if (Pack::is_raw) {
      rows_to_tile(from, p.query.row_stride * (int64_t)sizeof(Storage), v.rows, p.head_dim, queries);
    } else {
      for (int64_t row = 0; row < v.rows; ++row)
        Pack::pack_row(from + row * p.query.row_stride, p.head_dim, rows + row * p.head_dim);
      rows_to_tile(rows, p.head_dim * (int64_t)sizeof(Scalar), v.rows, p.head_dim, queries);
    }
    if (p.distance_keys.data) {
      const Scalar *met = row_of<Scalar>(p.distance_query, v.batch, v.head, v.block * kBlock);
      rows_to_tile(met, p.distance_query.row_stride * (int64_t)sizeof(Scalar), v.rows, p.head_dim, distance_queries);
    }
  }

  /* Scores of keys [first, end) of a run. */
  void score(const Visible &v, const Run &run, int64_t first, int64_t end) {
    const int64_t count = end - first, kv_head = v.head / (p.heads / p.kv_heads);
    const int first_lane = run.first_group * kGroup, columns = (run.end_group - run.first_group) * kGroup / width;
    const Storage *key_rows = row_of<Storage>(p.key, v.batch, kv_head, first);
    const Scalar *units = (const Scalar *)key_rows;
    int64_t stride = p.key.row_stride;
    if (!Pack::is_raw) {
      for (int64_t key = 0; key < count; ++key)
        Pack::pack_row(key_rows + key * p.key.row_stride, p.head_dim, keys + key * p.head_dim);
      units = keys;
      stride = p.head_dim;
    }
    const Product<Scalar> product{stride, 1, kBlock, kBlock, p.head_dim, nullptr};
    multiply<Core, kStore, true>(product, units, count, queries + first_lane, columns, scores + first_lane);
    ScoreTile<Scalar> at{p, v.batch, v.head, v.block * kBlock, v.rows, scores, added, nullptr, nullptr};
    if (p.distance_keys.data) {
      const Scalar *table = (const Scalar *)p.distance_keys.data + v.head * p.distance_keys.head_stride;
      match_distances(DistanceRows(p, at.first_query, first, end), table, p.distance_keys.row_stride, p.head_dim,
                      distance_queries, distance_tile);
      at.by_distance = distance_tile;
    }
    finish_scores(at, first, end, run.first_group, run.end_group);
    if (!run.masked()) return;
    visible_words(run, first, end, words);
    mask_scores(scores, words, count, run.first_group, run.end_group);
  }

  /* The first pass: the normaliser of every row in the groups of 16 queries [first_group, end_group). False where
   * NaN or Inf is in between. */
  bool normalise(const Visible &v, int first_group, int end_group) {
    seen = 0;
    for (int lane = 0; lane < kBlock; ++lane) {
      highest[lane] = highest_bias[lane] = -(Scalar)INFINITY;
      sums[lane] = 0;
    }
    for_each_tile(v, first_group, end_group, [&](const Run &run, int64_t first, int64_t end) {
      score(v, run, first, end);
      const int64_t count = end - first;
      note_who_sees(run, count);
      for (int lane = run.first_group * kGroup; lane < run.end_group * kGroup; lane += width) add_to_sums(lane, count);
    });
    bool finite = true;
    for (int64_t lane = first_group * kGroup; lane < end_group * kGroup; ++lane)
      if (!conclude(v, lane)) finite = false;
    return finite;
  }

  /* take(run) for the runs of a block, narrowed to these groups. */
  template <class Take>
  void for_each_run(const Visible &v, int first_group, int end_group, Take take) const {
    v.for_each_run([&](Run run) {
      if (run.first_group < first_group) run.first_group = first_group;
      if (run.end_group > end_group) run.end_group = end_group;
      if (run.first_group < run.end_group) take(run);
    });
  }

  /* take(run, first, end) for tiles of at most most_keys keys of these runs. */
  template <class Take>
  void for_each_tile(const Visible &v, int first_group, int end_group, Take take) const {
    for_each_run(v, first_group, end_group, [&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys)
        take(run, key, key + most_keys < run.end ? key + most_keys : run.end);
    });
  }

  /* exp(score - top) times inverse, and 0 for lanes past the last query. */
  void weigh(const Run &run, int64_t count) const {
    for (int lane = run.first_group * kGroup; lane < run.end_group * kGroup; lane += width) {
      const Vector top = load(tops + lane), inverse = load(inverses + lane);
      for (int64_t key = 0; key < count; ++key) {
        const Vector weight = exponential(load(scores + key * kBlock + lane) - top) * inverse;
        store(weights + key * kBlock + lane,
              inverse == 0 ? Vector{} : weight); /* a lane without a query meets NaN too */
      }
    }
  }

 private:
  void note_who_sees(const Run &run, int64_t count) {
    const uint64_t upper = run.end_group == kGroups ? ~0ull : (1ull << (run.end_group * kGroup)) - 1;
    uint64_t here = run.masked() ? 0 : ~0ull;
    if (run.masked())
      for (int64_t key = 0; key < count; ++key) here |= words[key];
    seen |= here & upper & ~((1ull << (run.first_group * kGroup)) - 1);
    if (!p.bias.data) return;
    if (run.masked()) mask_scores(added, words, count, run.first_group, run.end_group);
    raise_to_scores(highest_bias, added, count, run.first_group, run.end_group);
  }

  void add_to_sums(int lane, int64_t count) const {
    const Vector old = load(highest + lane), never = broadcast(-(Scalar)INFINITY);
    Vector most = old;
    for (int64_t key = 0; key < count; ++key) most = larger(most, load(scores + key * kBlock + lane));
    const Vector base = most == never ? Vector{} : most; /* a row that has seen nothing yet */
    Vector sum = Vector{};
    for (int64_t key = 0; key < count; ++key) sum = sum + exponential(load(scores + key * kBlock + lane) - base);
    store(sums + lane, load(sums + lane) * exponential(old - base) + sum);
    store(highest + lane, most);
  }

  /* From sums and sink to what a weight is made of. False where NaN or Inf is in between: then the weights of this
   * row are none of our business. A row whose every score is -inf without a mask or bias that says so is such a row. */
  bool conclude(const Visible &v, int64_t lane) {
    const bool real = lane < v.rows, empty = sums[lane] == 0;
    tops[lane] = inverses[lane] = 0;
    rests[lane] = -INFINITY;
    totals[lane] = 0;
    if (!real) return true;
    if (empty) return !(seen >> lane & 1) || (p.bias.data && highest_bias[lane] == -(Scalar)INFINITY);
    Normaliser n((double)highest[lane], (double)sums[lane]);
    if (p.sink) n.take_in((double)((const Scalar *)p.sink)[v.head]);
    tops[lane] = (Scalar)n.top;
    inverses[lane] = (Scalar)(1 / n.sum());
    rests[lane] = log(n.sum());
    totals[lane] = n.weights / n.sum();
    return n.sum() == n.sum() && n.top < INFINITY; /* a sink of Inf leaves nothing to look at */
  }
};
