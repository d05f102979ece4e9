/* attention_backward.inl: gradients, with the weights recomputed from the lse.
 *
 * With P the weights, dP = dO V^T, D = rowsum(dO * O): dS = P (dP - D), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO
 * (Dao et al. 2022). A task owns the keys and values of one head, so that their gradients are summed in one order
 * on one thread. Where there are fewer of those than threads the blocks of queries are dealt out to several
 * tasks, each with its own sums, which are added up in order. */

int64_t backward_splits(const regard_problem &p) {
  const int64_t owners = p.batch * p.kv_heads, blocks = (p.q_len + kBlock - 1) / kBlock * (p.heads / p.kv_heads);
  if (p.threads <= 1 || owners >= 3 * p.threads || owners % p.threads == 0 || owners == 0) return 1;
  const int64_t wanted = (3 * (int64_t)p.threads + owners - 1) / owners;
  return wanted < blocks ? wanted : (blocks > 0 ? blocks : 1);
}

/* Does each element of the bias belong to one task only? */
bool owns_bias(const regard_problem &p) {
  return (p.bias.batch_stride != 0 || p.batch == 1) && (p.bias.head_stride != 0 || p.heads == 1) &&
         (p.bias.query_stride != 0 || p.q_len == 1 || backward_splits(p) == 1);
}

template <class Core, class Storage>
struct Backward {
  typedef BackwardBlock<Core, Storage> Block;
  typedef BackwardTile<Core, Storage> Tile;
  typedef typename Core::Scalar Scalar;
  static constexpr int width = Simd<Scalar>::width;
  static constexpr int64_t most_keys = Block::most_keys;
  static constexpr int64_t kSums = 8;

  const regard_problem &p;
  const regard_backward_arguments &a;
  const Block shape; /* without memory: for its sizes */
  const int64_t splits, blocks, owners;
  Scalar *partial_sums = nullptr; /* of every task, where there are splits */
  int finite = 1, status = REGARD_OK;

  Backward(const regard_problem &problem, const regard_backward_arguments &arguments)
      : p(problem),
        a(arguments),
        shape(problem, arguments),
        splits(backward_splits(problem)),
        blocks((problem.q_len + kBlock - 1) / kBlock),
        owners(problem.batch * problem.kv_heads) {}

  /* -------------------------------------------------------------------------------------------- tasks */

  static void run_owner(void *self, int64_t task) { ((Backward *)self)->owner(task); }
  static void run_reduction(void *self, int64_t task) { ((Backward *)self)->reduce(task); }
  static void run_bias(void *self, int64_t task) { ((Backward *)self)->bias_owner(task); }

  int run() {
    if (splits > 1) {
      const int64_t bytes = (owners * splits * shape.sums_size() * (int64_t)sizeof(Scalar) + 63) / 64 * 64;
      partial_sums = (Scalar *)aligned_alloc(64, bytes > 0 ? (size_t)bytes : 64);
      if (!partial_sums) return REGARD_NO_MEMORY;
    }
    regard::for_each_task(p.threads, owners * splits, run_owner, this);
    if (splits > 1 && status == REGARD_OK) regard::for_each_task(p.threads, owners, run_reduction, this);
    if (a.grad_bias.data && !owns_bias(p) && status == REGARD_OK)
      regard::for_each_task(p.threads, bias_owners(), run_bias, this);
    free(partial_sums);
    if (status != REGARD_OK) return status;
    return finite ? REGARD_OK : REGARD_NOT_FINITE;
  }

  bool allocate(Block *s, bool with_sums) {
    char *memory = (char *)regard::thread_scratch((size_t)s->lay_out(nullptr, with_sums));
    if (memory)
      s->lay_out(memory, with_sums);
    else
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    return memory != nullptr;
  }

  void owner(int64_t task) {
    Block s(p, a);
    if (!allocate(&s, splits == 1)) return;
    const int64_t split = task % splits, kv_head = task / splits % p.kv_heads, batch = task / splits / p.kv_heads;
    if (splits > 1) s.sums = partial_sums + task * shape.sums_size();
    memset(s.sums, 0, (size_t)shape.sums_size() * sizeof(Scalar));
    const int64_t group = p.heads / p.kv_heads;
    int64_t turn = 0;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t index = 0; index < blocks; ++index)
        if (turn++ % splits == split) block(s, Visible(p, batch, head, index), split);
    if (splits == 1) write_sums(s.sums, batch, kv_head);
  }

  void reduce(int64_t owner) {
    Scalar *first = partial_sums + owner * splits * shape.sums_size();
    for (int64_t split = 1; split < splits; ++split) {
      const Scalar *other = first + split * shape.sums_size();
      for (int64_t i = 0; i < shape.sums_size(); ++i) first[i] += other[i];
    }
    write_sums(first, owner / p.kv_heads, owner % p.kv_heads);
  }

  void write_sums(const Scalar *sums, int64_t batch, int64_t kv_head) {
    Scalar probe = 0;
    for (int64_t key = 0; key < p.kv_len; ++key) {
      if (a.grad_key.data)
        narrow(sums + key * shape.key_columns, p.head_dim, row_of<Storage>(a.grad_key, batch, kv_head, key), &probe);
      if (a.grad_value.data)
        narrow(sums + p.kv_len * shape.key_columns + key * shape.value_columns, p.value_dim,
               row_of<Storage>(a.grad_value, batch, kv_head, key), &probe);
    }
    note(probe);
  }

  void note(Scalar probe) {
    if (probe != 0 || probe != probe) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
  }

  /* -------------------------------------------------------------------------------- a block of queries */

  void block(Block &s, const Visible &v, int64_t split) {
    s.begin(v);
    v.for_each_run([&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys) {
        const int64_t end = key + most_keys < run.end ? key + most_keys : run.end;
        tile(Tile(s, v, run, key, end), split);
      }
    });
    finish(s, v);
  }

  void tile(const Tile &t, int64_t split) {
    t.weigh();
    if constexpr (Core::step_width == 2) {
      t.slant_pairs();
    } else {
      t.slant();
      if (a.grad_distance_bias) add_to_distance_bias(t, split);
      if (a.grad_bias.data && owns_bias(p)) add_to_bias(t);
      if (!shape.plain && !a.grad_query.data) note(t.probe());
      if (!shape.plain) t.bend();
    }
    t.sum_over_queries();
    t.sum_over_keys();
    if constexpr (Core::step_width == 1) {
      if (p.distance_keys.data || a.grad_distance_values) sum_by_distance(t, split);
    }
  }

  /* The gradients of distance_query, distance_keys and distance_values. */
  void sum_by_distance(const Tile &t, int64_t split) const {
    const DistanceRows rows(p, t.v.block * kBlock, t.first, t.first + t.keys);
    const int64_t all_rows = p.q_len + p.kv_len - 1, place = (t.v.batch * p.heads + t.v.head) * splits + split;
    if (p.distance_keys.data) {
      spread_by_distance(t.s.distance_tile, t.s.products, t.keys, t.first_group, t.end_group);
      const Scalar *table = (const Scalar *)p.distance_keys.data + t.v.head * p.distance_keys.head_stride;
      combine_distances(rows, table, p.distance_keys.row_stride, p.head_dim, t.s.distance_tile,
                        t.s.grad_distance_queries);
      if (a.grad_distance_keys)
        add_rows(t.s, rows, t.s.distance_query_rows, t.s.key_columns, p.head_dim, t.v.rows,
                 (Scalar *)a.grad_distance_keys + (place * all_rows + rows.table_row) * p.head_dim);
    }
    if (a.grad_distance_values) {
      spread_by_distance(t.s.distance_tile, t.s.scores, t.keys, t.first_group, t.end_group);
      add_rows(t.s, rows, t.s.plain_grad_rows, t.s.value_columns, p.value_dim, t.v.rows,
               (Scalar *)a.grad_distance_values + (place * all_rows + rows.table_row) * p.value_dim);
    }
  }

  /* to[row] += the tile by distance times rows [64][columns]. */
  void add_rows(const Block &s, const DistanceRows &rows, const Scalar *vectors, int64_t columns, int64_t elements,
                int64_t queries, Scalar *to) const {
    const Product<Scalar> product{kBlock, 1, columns, width, queries, nullptr};
    for (int64_t column = 0; column < columns; column += width) {
      memset(s.added_rows, 0, (size_t)(rows.count * width) * sizeof(Scalar));
      multiply<PlainCore<Scalar>, kAdd, true>(product, s.distance_tile + rows.tile_row * kBlock, rows.count,
                                              vectors + column, 1, s.added_rows);
      for (int64_t row = 0; row < rows.count; ++row)
        for (int64_t i = column; i < elements && i < column + width; ++i)
          to[row * elements + i] += s.added_rows[row * width + i - column];
    }
  }

  /* dz summed along the diagonals. */
  void add_to_distance_bias(const Tile &t, int64_t split) const {
    const int64_t all_rows = p.q_len + p.kv_len - 1, place = (t.v.batch * p.heads + t.v.head) * splits + split;
    double *table = (double *)a.grad_distance_bias + place * all_rows; /* whole diagonals: long sums */
    const int64_t corner = t.first - t.v.block * kBlock + p.distance_offset;
    for (int64_t key = 0; key < t.keys; ++key)
      for (int64_t lane = t.first_lane; lane < t.first_lane + t.queries; ++lane)
        table[corner + key - lane] += (double)t.s.products[key * kBlock + lane];
  }

  /* dz summed where the bias is shared. */
  void add_to_bias(const Tile &t) const {
    const regard_pairs &grad = a.grad_bias;
    Scalar *to = (Scalar *)grad.data + t.v.batch * grad.batch_stride + t.v.head * grad.head_stride +
                 t.v.block * kBlock * grad.query_stride + t.first * grad.key_stride;
    const int64_t last_lane = t.first_lane + t.queries;
    if (grad.key_stride == 0 && grad.query_stride != 0) { /* long sums, so not one by one in float */
      for (int64_t lane = t.first_lane; lane < last_lane; ++lane) {
        double sum = 0;
        for (int64_t key = 0; key < t.keys; ++key) sum += (double)t.s.products[key * kBlock + lane];
        to[lane * grad.query_stride] += (Scalar)sum;
      }
      return;
    }
    if (grad.query_stride == 0) {
      for (int64_t key = 0; key < t.keys; ++key) {
        const Scalar *row = t.s.products + key * kBlock + t.first_lane;
        double sums[kSums] = {}, sum = 0; /* several, or each number would wait for the one before it */
        int64_t lane = 0;
        for (; lane + kSums <= t.queries; lane += kSums)
          for (int64_t i = 0; i < kSums; ++i) sums[i] += (double)row[lane + i];
        for (; lane < t.queries; ++lane) sum += (double)row[lane];
        for (int64_t i = 0; i < kSums; ++i) sum += sums[i];
        to[key * grad.key_stride] += (Scalar)sum;
      }
      return;
    }
    for (int64_t lane = t.first_lane; lane < last_lane; ++lane)
      for (int64_t key = 0; key < t.keys; ++key)
        to[lane * grad.query_stride + key * grad.key_stride] += t.s.products[key * kBlock + lane];
  }

  void finish(const Block &s, const Visible &v) {
    Scalar probe = 0;
    if (a.grad_query.data) {
      tile_to_rows(s.grad_queries, v.rows, p.head_dim, s.rows, p.head_dim);
      for (int64_t row = 0; row < v.rows; ++row)
        narrow(s.rows + row * p.head_dim, p.head_dim,
               row_of<Storage>(a.grad_query, v.batch, v.head, v.block * kBlock + row), &probe);
    }
    if (p.distance_keys.data && a.grad_distance_query.data) {
      tile_to_rows(s.grad_distance_queries, v.rows, p.head_dim, s.rows, p.head_dim);
      for (int64_t row = 0; row < v.rows; ++row)
        narrow(s.rows + row * p.head_dim, p.head_dim,
               row_of<Scalar>(a.grad_distance_query, v.batch, v.head, v.block * kBlock + row), &probe);
    }
    note(probe);
  }

  /* ------------------------------------------------------------- a bias that several tasks would write to */

  /* One task for each stretch of the bias that nobody else writes to. It computes the scores' gradients once more. */
  int64_t bias_owners() const { return bias_batches() * bias_heads() * bias_blocks(); }
  int64_t bias_batches() const { return p.bias.batch_stride ? p.batch : 1; }
  int64_t bias_heads() const { return p.bias.head_stride ? p.heads : 1; }
  int64_t bias_blocks() const { return p.bias.query_stride ? blocks : 1; }

  void bias_owner(int64_t task) {
    if constexpr (Core::step_width == 1) {
      Block s(p, a);
      if (!allocate(&s, false)) return;
      const int64_t own_block = task % bias_blocks(), own_head = task / bias_blocks() % bias_heads();
      const int64_t own_batch = task / bias_blocks() / bias_heads();
      for (int64_t batch = 0; batch < p.batch; ++batch) {
        if (bias_batches() > 1 && batch != own_batch) continue;
        for (int64_t head = 0; head < p.heads; ++head) {
          if (bias_heads() > 1 && head != own_head) continue;
          for (int64_t index = 0; index < blocks; ++index)
            if (bias_blocks() == 1 || index == own_block) bias_block(s, Visible(p, batch, head, index));
        }
      }
    }
  }

  void bias_block(Block &s, const Visible &v) const {
    s.begin(v);
    v.for_each_run([&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys) {
        const Tile t(s, v, run, key, key + most_keys < run.end ? key + most_keys : run.end);
        t.weigh();
        t.slant();
        add_to_bias(t);
      }
    });
  }
};
