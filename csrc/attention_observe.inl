/* attention_observe.inl: what the weights are like, row by row and key by key, in one walk over the blocks of queries.
 *
 * A block meets its keys twice (see observed_block.inl). What is summed over queries is kept in parts, one for each
 * span of blocks, and the parts are added in order: the result depends on the problem and not on the threads. */

constexpr int64_t kMostTop = 64; /* the largest weights of a row are kept sorted, by insertion */

template <class Storage>
struct StatisticsPass {
  typedef ObservedBlock<Storage> Block;
  typedef typename Block::Scalar Scalar;
  typedef typename Block::Vector Vector;
  static constexpr int width = Block::width;
  static constexpr int64_t most_spans = 64; /* of all heads together; one for each head where there are more */

  const regard_problem &p;
  const regard_statistics_results &r;
  int64_t blocks = 0, spans = 0;
  double *received = nullptr; /* [batch][head][span][kv_len] */
  double *pooled = nullptr;   /* [batch][head][side + spans - 1][side]: bin + span, since spans share a bin at most */
  int finite = 1, status = REGARD_OK;

  struct Scratch {
    Block b;
    double *entropy, *distance, *share; /* [64] */
    Scalar *places, *line;              /* [64]: the index of each query; scratch */
    int64_t *row_bins;                  /* [64] */
    Scalar *top_scores, *least;         /* [64][top_count] descending; [64]: what a score must exceed to get in */
    int64_t *top_keys;                  /* [64][top_count] */
    int64_t *top_found;                 /* [64] */
  };

  void lay_out(Scratch *s, char **cursor) const {
    s->b.lay_out(cursor);
    const auto take = [&](int64_t count, int64_t size) { return take_aligned(cursor, count * size); };
    s->entropy = (double *)take(kBlock, sizeof(double));
    s->distance = (double *)take(kBlock, sizeof(double));
    s->share = (double *)take(kBlock, sizeof(double));
    s->places = (Scalar *)take(kBlock, sizeof(Scalar));
    s->line = (Scalar *)take(kBlock, sizeof(Scalar));
    s->row_bins = (int64_t *)take(kBlock, sizeof(int64_t));
    s->top_scores = (Scalar *)take(kBlock * r.top_count, sizeof(Scalar));
    s->least = (Scalar *)take(kBlock, sizeof(Scalar));
    s->top_keys = (int64_t *)take(kBlock * r.top_count, sizeof(int64_t));
    s->top_found = (int64_t *)take(kBlock, sizeof(int64_t));
  }

  int run() {
    if (r.top_count > kMostTop || r.top_count > p.kv_len) return REGARD_BAD_ARGUMENT;
    const int64_t all_heads = p.batch * p.heads;
    blocks = (p.q_len + kBlock - 1) / kBlock;
    spans = most_spans / all_heads < blocks ? most_spans / all_heads : blocks;
    if (spans < 1) spans = 1;
    if (r.received) received = (double *)calloc((size_t)(all_heads * spans * p.kv_len), sizeof(double));
    if (r.pooled)
      pooled = (double *)calloc((size_t)(all_heads * (r.pooled_side + spans - 1) * r.pooled_side), sizeof(double));
    if ((r.received && !received) || (r.pooled && !pooled))
      status = REGARD_NO_MEMORY;
    else
      regard::for_each_task(p.threads, all_heads * spans, run_task, this);
    if (status == REGARD_OK && finite)
      for (int64_t head = 0; head < all_heads; ++head) {
        if (received) join_received(head);
        if (pooled) join_pooled(head);
      }
    free(received);
    free(pooled);
    if (status != REGARD_OK) return status;
    return finite ? REGARD_OK : REGARD_NOT_FINITE;
  }

  static void run_task(void *self, int64_t task) { ((StatisticsPass *)self)->span(task); }

  bool needs_weights() const { return r.entropy || r.sink_share || r.distance || r.received || r.pooled; }

  int64_t first_block(int64_t span) const { return span * blocks / spans; }

  /* Late spans first: with a causal mask they are the long ones. */
  void span(int64_t task) {
    Scratch s{Block(p), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    char *cursor = nullptr;
    lay_out(&s, &cursor);
    cursor = (char *)regard::thread_scratch((size_t)(cursor - (char *)nullptr));
    if (!cursor) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    lay_out(&s, &cursor);
    const int64_t index = spans - 1 - task % spans, head = task / spans;
    double *columns = received ? received + (head * spans + index) * p.kv_len : nullptr;
    double *map = pooled ? pooled + (head * (r.pooled_side + spans - 1) + index) * r.pooled_side : nullptr;
    for (int64_t block = first_block(index); block < first_block(index + 1); ++block) {
      if (!__atomic_load_n(&finite, __ATOMIC_RELAXED)) return; /* nobody will look */
      const Visible visible(p, head / p.heads, head % p.heads, block);
      s.b.begin(visible);
      if (!s.b.normalise(visible, 0, visible.groups())) {
        __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
        return;
      }
      begin(s, visible);
      if (needs_weights() || r.top_count)
        s.b.for_each_tile(visible, 0, visible.groups(), [&](const Run &run, int64_t first, int64_t end) {
          s.b.score(visible, run, first, end);
          add(s, run, first, end, visible.rows, columns, map);
        });
      write_rows(s, visible);
    }
  }

  void begin(const Scratch &s, const Visible &v) const {
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      const int64_t query = v.block * kBlock + lane;
      s.entropy[lane] = s.distance[lane] = s.share[lane] = 0;
      s.places[lane] = (Scalar)query;
      s.row_bins[lane] = query * r.pooled_side / p.q_len;
      s.least[lane] = lane < v.rows ? -(Scalar)INFINITY : (Scalar)INFINITY;
      s.top_found[lane] = 0;
    }
  }

  void add(const Scratch &s, const Run &run, int64_t first, int64_t end, int64_t rows, double *columns,
           double *map) const {
    const int first_lane = run.first_group * kGroup, end_lane = run.end_group * kGroup;
    const int64_t count = end - first;
    if (needs_weights()) s.b.weigh(run, count);
    for (int lane = first_lane; lane < end_lane; lane += width) {
      if (r.entropy) add_surprise(s, count, lane);
      if (r.distance) add_distance(s, first, count, lane);
    }
    if (r.sink_share && first == 0)
      for (int lane = first_lane; lane < end_lane; ++lane) s.share[lane] += (double)s.b.weights[lane];
    if (columns) add_columns(s, columns + first, count, first_lane, end_lane);
    if (map) add_to_map(s, map, first, end, first_lane, end_lane < rows ? end_lane : (int)rows);
    if (r.top_count) add_top(s, first, count, first_lane, end_lane);
  }

  /* weight times (top - score). Nothing is left of a weight at 10000 below the top, and 0 times infinity is avoided. */
  void add_surprise(const Scratch &s, int64_t count, int lane) const {
    const Vector top = load(s.b.tops + lane), lowest = broadcast(Scalar(-10000));
    Vector sum = {};
    for (int64_t key = 0; key < count; ++key)
      sum =
          sum - load(s.b.weights + key * kBlock + lane) * larger(load(s.b.scores + key * kBlock + lane) - top, lowest);
    add_lanes(s, sum, s.entropy, lane);
  }

  void add_distance(const Scratch &s, int64_t first, int64_t count, int lane) const {
    const Vector places = load(s.places + lane);
    Vector sum = {};
    for (int64_t key = 0; key < count; ++key) {
      const Vector away = (Scalar)(first + key) - places;
      sum = sum + load(s.b.weights + key * kBlock + lane) * larger(away, -away);
    }
    add_lanes(s, sum, s.distance, lane);
  }

  void add_lanes(const Scratch &s, Vector sum, double *to, int lane) const {
    store(s.line + lane, sum);
    for (int i = lane; i < lane + width; ++i) to[i] += (double)s.line[i];
  }

  void add_columns(const Scratch &s, double *columns, int64_t count, int first_lane, int end_lane) const {
    for (int64_t key = 0; key < count; ++key) {
      Vector sum = {};
      for (int lane = first_lane; lane < end_lane; lane += width) sum = sum + load(s.b.weights + key * kBlock + lane);
      columns[key] += (double)sum_of_lanes(sum);
    }
  }

  /* Neighbouring keys of one bin are added up for all queries, and then each query's sum goes to its own bin. */
  void add_to_map(const Scratch &s, double *map, int64_t first, int64_t end, int first_lane, int end_lane) const {
    for (int64_t key = first; key < end;) {
      const int64_t bin = key * r.pooled_side / p.kv_len;
      int64_t last = ((bin + 1) * p.kv_len + r.pooled_side - 1) / r.pooled_side;
      if (last > end) last = end;
      for (int lane = first_lane; lane < end_lane; lane += width) {
        Vector sum = {};
        for (int64_t k = key; k < last; ++k) sum = sum + load(s.b.weights + (k - first) * kBlock + lane);
        store(s.line + lane, sum);
      }
      for (int lane = first_lane; lane < end_lane; ++lane)
        map[s.row_bins[lane] * r.pooled_side + bin] += (double)s.line[lane];
      key = last;
    }
  }

  void add_top(const Scratch &s, int64_t first, int64_t count, int first_lane, int end_lane) const {
    for (int64_t key = 0; key < count; ++key)
      for (int lane = first_lane; lane < end_lane; lane += width) {
        const Scalar *scores = s.b.scores + key * kBlock + lane;
        uint64_t above = lanes_above(load(scores), load(s.least + lane));
        for (; above; above &= above - 1) {
          const int at = __builtin_ctzll(above);
          insert(s, lane + at, scores[at], first + key);
        }
      }
  }

  /* Of equal scores the earlier key comes first. */
  void insert(const Scratch &s, int64_t lane, Scalar score, int64_t key) const {
    Scalar *scores = s.top_scores + lane * r.top_count;
    int64_t *keys = s.top_keys + lane * r.top_count;
    int64_t at = s.top_found[lane] < r.top_count ? s.top_found[lane]++ : r.top_count - 1;
    for (; at > 0 && scores[at - 1] < score; --at) {
      scores[at] = scores[at - 1];
      keys[at] = keys[at - 1];
    }
    scores[at] = score;
    keys[at] = key;
    if (s.top_found[lane] == r.top_count) s.least[lane] = scores[r.top_count - 1];
  }

  void write_rows(const Scratch &s, const Visible &v) const {
    const int64_t first_row = (v.batch * p.heads + v.head) * p.q_len + v.block * kBlock;
    for (int64_t lane = 0; lane < v.rows; ++lane) {
      const double total = s.b.totals[lane];
      if (r.entropy)
        ((Scalar *)r.entropy)[first_row + lane] =
            total == 0 ? Scalar(0) : (Scalar)(s.entropy[lane] + total * s.b.rests[lane]);
      if (r.max_logit) ((Scalar *)r.max_logit)[first_row + lane] = s.b.highest[lane];
      if (r.sink_share) ((Scalar *)r.sink_share)[first_row + lane] = (Scalar)s.share[lane];
      if (r.distance) ((Scalar *)r.distance)[first_row + lane] = (Scalar)s.distance[lane];
      if (r.top_count) write_top(s, lane, (first_row + lane) * r.top_count);
    }
  }

  /* A row that attends to too few keys is filled up with the first of the others, whose weight is 0. */
  void write_top(const Scratch &s, int64_t lane, int64_t to) const {
    const int64_t found = s.top_found[lane], *keys = s.top_keys + lane * r.top_count;
    for (int64_t i = 0; i < found; ++i) {
      const double below = (double)s.top_scores[lane * r.top_count + i] - (double)s.b.tops[lane];
      ((Scalar *)r.top_weights)[to + i] = (Scalar)(exp(below) * (double)s.b.inverses[lane]);
      r.top_keys[to + i] = keys[i];
    }
    int64_t filled = found;
    for (int64_t key = 0; filled < r.top_count; ++key) {
      bool taken = false;
      for (int64_t i = 0; i < found; ++i) taken = taken || keys[i] == key;
      if (taken) continue;
      ((Scalar *)r.top_weights)[to + filled] = 0;
      r.top_keys[to + filled++] = key;
    }
  }

  void join_received(int64_t head) const {
    const double *parts = received + head * spans * p.kv_len;
    for (int64_t key = 0; key < p.kv_len; ++key) {
      double sum = 0;
      for (int64_t span = 0; span < spans; ++span) sum += parts[span * p.kv_len + key];
      ((Scalar *)r.received)[head * p.kv_len + key] = (Scalar)sum;
    }
  }

  /* Means over the queries of each bin. A bin has parts in every span that holds a query of it. */
  void join_pooled(int64_t head) const {
    const int64_t side = r.pooled_side;
    const double *parts = pooled + head * (side + spans - 1) * side;
    Scalar *to = (Scalar *)r.pooled + head * side * side;
    for (int64_t bin = 0; bin < side; ++bin) {
      const int64_t first = (bin * p.q_len + side - 1) / side, end = ((bin + 1) * p.q_len + side - 1) / side;
      for (int64_t col = 0; col < side; ++col) {
        double sum = 0;
        for (int64_t span = 0; span < spans; ++span)
          if (first < first_block(span + 1) * kBlock && first_block(span) * kBlock < end)
            sum += parts[(bin + span) * side + col];
        to[bin * side + col] = end > first ? (Scalar)(sum / (double)(end - first)) : Scalar(0);
      }
    }
  }
};
