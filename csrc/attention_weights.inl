/* attention_weights.inl: any tile of the weights, which attention itself throws away: chosen heads, queries and keys. */

template <class Storage>
struct WeightTile {
  typedef ObservedBlock<Storage> Block;
  typedef typename Block::Scalar Scalar;
  static constexpr int64_t most_gap = 8; /* so few keys that nobody asked for are computed on the way */

  const regard_problem &p;
  const regard_weights_arguments &a;
  int64_t *starts = nullptr; /* where in a.rows each block of queries begins, and one more */
  int64_t blocks = 0;
  int finite = 1, status = REGARD_OK;

  int run() {
    starts = (int64_t *)malloc((size_t)(a.row_count + 1) * sizeof(int64_t));
    if (!starts) return REGARD_NO_MEMORY;
    for (int64_t i = 0; i < a.row_count; ++i)
      if (i == 0 || a.rows[i] / kBlock != a.rows[i - 1] / kBlock) starts[blocks++] = i;
    starts[blocks] = a.row_count;
    regard::for_each_task(p.threads, p.batch * a.head_count * blocks, run_task, this);
    free(starts);
    if (status != REGARD_OK) return status;
    return finite ? REGARD_OK : REGARD_NOT_FINITE;
  }

  static void run_task(void *self, int64_t task) { ((WeightTile *)self)->block(task); }

  struct Chosen {       /* of the rows asked for, those of one block */
    int64_t first, end; /* in a.rows */
    int first_group, end_group;
    Scalar *by_row; /* [64][most_keys], scratch */
    int64_t row;    /* of the first of all rows of this head, in what is written */
  };

  void block(int64_t task) {
    Block b(p);
    char *cursor = nullptr;
    Scalar *by_row = lay_out(&b, &cursor);
    cursor = (char *)regard::thread_scratch((size_t)(cursor - (char *)nullptr));
    if (!cursor) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    by_row = lay_out(&b, &cursor);
    const int64_t index = task % blocks, head = task / blocks % a.head_count, batch = task / blocks / a.head_count;
    const int64_t first = starts[index], end = starts[index + 1];
    const Chosen chosen{first,
                        end,
                        (int)(a.rows[first] % kBlock / kGroup),
                        (int)(a.rows[end - 1] % kBlock / kGroup) + 1,
                        by_row,
                        (batch * a.head_count + head) * a.row_count};
    const Visible visible(p, batch, a.heads[head], a.rows[first] / kBlock);
    b.begin(visible);
    bool good = true;
    if (a.lse)
      take_normalisers(b, chosen);
    else
      good = b.normalise(visible, chosen.first_group, chosen.end_group);
    if (a.found_top) give_normalisers(b, chosen);
    if (a.weights && good) good = write_weights(&b, visible, chosen);
    if (!good) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
  }

  static Scalar *lay_out(Block *b, char **cursor) {
    b->lay_out(cursor);
    return (Scalar *)take_aligned(cursor, kBlock * Block::most_keys * (int64_t)sizeof(Scalar));
  }

  void take_normalisers(const Block &b, const Chosen &chosen) const {
    for (int lane = 0; lane < kBlock; ++lane) b.tops[lane] = b.inverses[lane] = 0;
    for (int64_t i = chosen.first; i < chosen.end; ++i) {
      const Scalar rest = a.lse_low ? ((const Scalar *)a.lse_low)[chosen.row + i] : Scalar(0);
      b.tops[a.rows[i] % kBlock] = ((const Scalar *)a.lse)[chosen.row + i];
      b.inverses[a.rows[i] % kBlock] = rest == -(Scalar)INFINITY ? Scalar(0) : (Scalar)exp(-(double)rest);
    }
  }

  void give_normalisers(const Block &b, const Chosen &chosen) const {
    for (int64_t i = chosen.first; i < chosen.end; ++i) {
      ((Scalar *)a.found_top)[chosen.row + i] = b.tops[a.rows[i] % kBlock];
      ((Scalar *)a.found_rest)[chosen.row + i] = (Scalar)b.rests[a.rows[i] % kBlock];
    }
  }

  /* Keys that were asked for and lie close together make a tile. False where a weight is NaN or Inf. */
  bool write_weights(Block *b, const Visible &visible, const Chosen &chosen) const {
    Scalar *to = (Scalar *)a.weights + (chosen.row + chosen.first) * a.col_count;
    memset(to, 0, (size_t)((chosen.end - chosen.first) * a.col_count) * sizeof(Scalar));
    bool good = true;
    b->for_each_run(visible, chosen.first_group, chosen.end_group, [&](const Run &run) {
      int64_t col = first_at_or_past(run.first);
      while (col < a.col_count && a.cols[col] < run.end) {
        const int64_t first = a.cols[col];
        int64_t end = col + 1;
        while (end < a.col_count && a.cols[end] < run.end && a.cols[end] - first < Block::most_keys &&
               a.cols[end] - a.cols[end - 1] <= most_gap)
          ++end;
        b->score(visible, run, first, a.cols[end - 1] + 1);
        b->weigh(run, a.cols[end - 1] + 1 - first);
        if (!add_tile(*b, run, chosen, col, end)) good = false;
        col = end;
      }
    });
    return good;
  }

  int64_t first_at_or_past(int64_t key) const {
    int64_t low = 0, high = a.col_count;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (a.cols[middle] < key)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  /* Weights of keys a.cols[col] to a.cols[end - 1] to the caller. They are added, since a pair may lie in several runs;
   * it may attend in at most one of them. */
  bool add_tile(const Block &b, const Run &run, const Chosen &chosen, int64_t col, int64_t end) const {
    const int64_t first = a.cols[col], count = a.cols[end - 1] + 1 - first;
    const int first_lane = run.first_group * kGroup, end_lane = run.end_group * kGroup;
    Scalar probes[kBlock];
    for (int lane = first_lane; lane < end_lane; lane += Block::width) {
      typename Block::Vector probe = {};
      for (int64_t key = 0; key < count; ++key) probe = probe + load(b.weights + key * kBlock + lane) * Scalar(0);
      store(probes + lane, probe);
    }
    tile_to_rows(b.weights + first_lane, end_lane - first_lane, count, chosen.by_row, Block::most_keys);
    bool good = true;
    for (int64_t i = chosen.first; i < chosen.end; ++i) {
      const int64_t lane = a.rows[i] % kBlock;
      if (lane < first_lane || lane >= end_lane) continue;
      if (probes[lane] != 0) good = false;
      const Scalar *from = chosen.by_row + (lane - first_lane) * Block::most_keys;
      Scalar *to = (Scalar *)a.weights + (chosen.row + i) * a.col_count + col;
      if (count == end - col)
        for (int64_t k = 0; k < count; ++k) to[k] += from[k];
      else
        for (int64_t k = col; k < end; ++k) to[k - col] += from[a.cols[k] - first];
    }
    return good;
  }
};
