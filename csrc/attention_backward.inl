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
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Unit Unit;
  typedef Units<Core, Storage> Pack;
  typedef VectorOf<Scalar> Vector;
  static constexpr int width = Simd<Scalar>::width;
  static constexpr int64_t most_keys = 64;

  const regard_problem &p;
  const regard_backward_arguments &a;
  const int64_t splits, blocks, owners;
  const int64_t key_units, value_units;    /* units of a row */
  const int64_t key_columns, value_columns; /* head_dim and value_dim in whole vectors, as numbers */
  const bool plain, raw_keys, raw_values, raw_rows;
  Scalar *partial_sums = nullptr; /* of every task, where there are splits */
  int finite = 1, status = REGARD_OK;

  Backward(const regard_problem &problem, const regard_backward_arguments &arguments)
      : p(problem), a(arguments), splits(backward_splits(problem)), blocks((problem.q_len + kBlock - 1) / kBlock),
        owners(problem.batch * problem.kv_heads), key_units(units_in(problem.head_dim)),
        value_units(units_in(problem.value_dim)), key_columns(whole_vectors(problem.head_dim)),
        value_columns(whole_vectors(problem.value_dim)), plain(is_plain(problem)),
        raw_keys(Pack::is_raw && problem.head_dim % Core::step_width == 0 &&
                 problem.key.row_stride % Core::step_width == 0),
        raw_values(Pack::is_raw && problem.value_dim % Core::step_width == 0 &&
                   problem.value.row_stride % Core::step_width == 0),
        raw_rows(Pack::is_raw && Core::step_width == 1) {}

  static int64_t units_in(int64_t elements) { return (elements + Core::step_width - 1) / Core::step_width; }
  static int64_t whole_vectors(int64_t elements) { return (elements + width - 1) / width * width; }
  int64_t sums_size() const { return p.kv_len * (key_columns + value_columns); }

  struct Scratch {
    Unit *queries, *grad_outputs;           /* [units][64] */
    Unit *query_rows, *grad_output_rows;    /* [64 or 32 steps][columns]: what dK and dV are summed from */
    Unit *keys, *values;                    /* [most_keys][units], when packed */
    Unit *key_steps;                        /* [most_keys steps][head_dim], when packed */
    Scalar *scores, *products;              /* [most_keys][64]: P, and dP that becomes dS */
    Unit *weights, *slants, *slant_steps;   /* P and dS as units along the queries; dS as units along the keys */
    Scalar *grad_queries;                   /* [head_dim][64] */
    Scalar *added, *slopes;                 /* [most_keys][64] */
    Scalar *distance_queries, *grad_distance_queries; /* [head_dim][64] */
    Scalar *distance_query_rows, *plain_grad_rows;    /* [64][columns] */
    Scalar *plain_grad_outputs;             /* [value_dim][64] */
    Scalar *distance_tile;                  /* [most_keys + 64][64] */
    Scalar *added_rows;                     /* [most_keys + 64][width] */
    Scalar *lse, *lse_low, *means;          /* [64]; the last is D */
    int64_t *alone;                         /* 1: one tile has all keys that the block sees */
    int64_t *large;                         /* 1: some lse is too large for the quick way to a weight */
    Scalar *huge;                           /* [64]: 1 where it is so large that the lse is a natural logarithm */
    Scalar *rows;                           /* [64][columns] */
    uint64_t *words, *kept;
    Scalar *sums;                           /* dK and dV: [kv_len][key_columns], [kv_len][value_columns] */
  };

  int64_t lay_out(Scratch *s, char *memory, bool with_sums) const {
    char *cursor = memory;
    const auto units = [&](int64_t count) { return (Unit *)take_aligned(&cursor, count * (int64_t)sizeof(Unit)); };
    const auto numbers = [&](int64_t count) { return (Scalar *)take_aligned(&cursor, count * (int64_t)sizeof(Scalar)); };
    const bool tables = p.distance_keys.data || p.distance_values.data;
    const int64_t steps = kBlock / Core::step_width, columns = key_columns > value_columns ? key_columns : value_columns;
    s->scores = numbers(most_keys * kBlock);
    s->products = numbers(most_keys * kBlock);
    s->queries = units(key_units * kBlock);
    s->grad_outputs = units(value_units * kBlock);
    s->query_rows = units(steps * key_columns);
    s->grad_output_rows = units(steps * value_columns);
    s->grad_queries = numbers(p.head_dim * kBlock);
    s->keys = units(raw_keys ? 0 : most_keys * key_units);
    s->values = units(raw_values ? 0 : most_keys * value_units);
    s->key_steps = units(Core::step_width == 1 ? 0 : most_keys / Core::step_width * p.head_dim);
    s->weights = units(Core::step_width == 1 ? 0 : most_keys * steps);
    s->slants = units(Core::step_width == 1 ? 0 : most_keys * steps);
    s->slant_steps = units(Core::step_width == 1 ? 0 : most_keys / Core::step_width * kBlock);
    s->added = numbers(p.bias.data ? most_keys * kBlock : 0);
    s->slopes = numbers(p.softcap != 0 ? most_keys * kBlock : 0);
    s->distance_queries = numbers(p.distance_keys.data ? p.head_dim * kBlock : 0);
    s->grad_distance_queries = numbers(p.distance_keys.data ? p.head_dim * kBlock : 0);
    s->distance_query_rows = numbers(p.distance_keys.data ? kBlock * key_columns : 0);
    s->plain_grad_rows = numbers(p.distance_values.data ? kBlock * value_columns : 0);
    s->plain_grad_outputs = numbers(p.distance_values.data ? p.value_dim * kBlock : 0);
    s->distance_tile = numbers(tables ? (most_keys + kBlock) * kBlock : 0);
    s->added_rows = numbers(tables ? (most_keys + kBlock) * width : 0);
    s->lse = numbers(kBlock);
    s->lse_low = numbers(kBlock);
    s->means = numbers(kBlock);
    s->huge = numbers(kBlock);
    s->large = (int64_t *)take_aligned(&cursor, 8);
    s->alone = (int64_t *)take_aligned(&cursor, 8);
    s->rows = numbers(2 * kBlock * columns);
    s->words = (uint64_t *)take_aligned(&cursor, most_keys * 8);
    s->kept = (uint64_t *)take_aligned(&cursor, p.drop_below ? most_keys * 8 : 0);
    s->sums = numbers(with_sums ? sums_size() : 0);
    return cursor - memory;
  }

  /* -------------------------------------------------------------------------------------------- tasks */

  static void run_owner(void *self, int64_t task) { ((Backward *)self)->owner(task); }
  static void run_reduction(void *self, int64_t task) { ((Backward *)self)->reduce(task); }
  static void run_bias(void *self, int64_t task) { ((Backward *)self)->bias_owner(task); }

  int run() {
    if (splits > 1) {
      const int64_t bytes = (owners * splits * sums_size() * (int64_t)sizeof(Scalar) + 63) / 64 * 64;
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

  bool allocate(Scratch *s, bool with_sums) {
    char *memory = (char *)regard::thread_scratch((size_t)lay_out(s, nullptr, with_sums));
    if (memory) lay_out(s, memory, with_sums);
    else __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
    return memory != nullptr;
  }

  void owner(int64_t task) {
    Scratch s;
    if (!allocate(&s, splits == 1)) return;
    const int64_t split = task % splits, kv_head = task / splits % p.kv_heads, batch = task / splits / p.kv_heads;
    if (splits > 1) s.sums = partial_sums + task * sums_size();
    memset(s.sums, 0, (size_t)sums_size() * sizeof(Scalar));
    const int64_t group = p.heads / p.kv_heads;
    int64_t turn = 0;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t index = 0; index < blocks; ++index)
        if (turn++ % splits == split) block(s, Visible(p, batch, head, index), split);
    if (splits == 1) write_sums(s.sums, batch, kv_head);
  }

  void reduce(int64_t owner) {
    Scalar *first = partial_sums + owner * splits * sums_size();
    for (int64_t split = 1; split < splits; ++split) {
      const Scalar *other = first + split * sums_size();
      for (int64_t i = 0; i < sums_size(); ++i) first[i] += other[i];
    }
    write_sums(first, owner / p.kv_heads, owner % p.kv_heads);
  }

  void write_sums(const Scalar *sums, int64_t batch, int64_t kv_head) {
    Scalar probe = 0;
    for (int64_t key = 0; key < p.kv_len; ++key) {
      if (a.grad_key.data)
        narrow(sums + key * key_columns, p.head_dim, row_of<Storage>(a.grad_key, batch, kv_head, key), &probe);
      if (a.grad_value.data)
        narrow(sums + p.kv_len * key_columns + key * value_columns, p.value_dim,
               row_of<Storage>(a.grad_value, batch, kv_head, key), &probe);
    }
    note(probe);
  }

  void note(Scalar probe) {
    if (probe != 0 || probe != probe) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
  }

  /* -------------------------------------------------------------------------------- a block of queries */

  void block(const Scratch &s, const Visible &v, int64_t split) {
    begin(s, v);
    v.for_each_run([&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys) {
        const int64_t end = key + most_keys < run.end ? key + most_keys : run.end;
        tile(s, v, run, key, end, split);
      }
    });
    finish(s, v);
  }

  /* Rows of queries or output gradients as units [units][64] and, for sums over queries, as [steps][columns]. */
  void load_rows(const Storage *from, int64_t row_stride, int64_t count, int64_t elements, int64_t columns,
                 const Scratch &s, Unit *tile, Unit *step_rows) const {
    const int64_t units = units_in(elements);
    if (Pack::is_raw && elements % Core::step_width == 0) {
      rows_to_tile(from, row_stride * (int64_t)sizeof(Storage), count, units, tile);
    } else {
      for (int64_t row = 0; row < count; ++row) Pack::pack_row(from + row * row_stride, elements, (Unit *)s.rows + row * units);
      rows_to_tile(s.rows, units * (int64_t)sizeof(Unit), count, units, tile);
    }
    if (columns != elements) memset(step_rows, 0, (size_t)(kBlock / Core::step_width * columns) * sizeof(Unit));
    Pack::pack_steps(from, row_stride, count, elements, step_rows, columns);
  }

  void begin(const Scratch &s, const Visible &v) const {
    int64_t tiles = 0;
    v.for_each_run([&](const Run &run) { tiles += (run.end - run.first + most_keys - 1) / most_keys; });
    *s.alone = tiles == 1;
    const int64_t first = v.block * kBlock;
    const Storage *grads = row_of<Storage>(a.grad_output, v.batch, v.head, first);
    load_rows(row_of<Storage>(p.query, v.batch, v.head, first), p.query.row_stride, v.rows, p.head_dim, key_columns, s,
              s.queries, s.query_rows);
    load_rows(grads, a.grad_output.row_stride, v.rows, p.value_dim, value_columns, s, s.grad_outputs,
              s.grad_output_rows);
    const int64_t first_row = (v.batch * p.heads + v.head) * p.q_len + first;
    load_lse(s, v, first_row);
    load_means(s, v, grads, first_row);
    memset(s.grad_queries, 0, (size_t)(p.head_dim * kBlock) * sizeof(Scalar));
    if (p.distance_keys.data) {
      const Scalar *met = row_of<Scalar>(p.distance_query, v.batch, v.head, first);
      if (key_columns != p.head_dim) memset(s.distance_query_rows, 0, (size_t)(kBlock * key_columns) * sizeof(Scalar));
      for (int64_t row = 0; row < v.rows; ++row)
        widen(met + row * p.distance_query.row_stride, p.head_dim, s.distance_query_rows + row * key_columns);
      rows_to_tile(s.distance_query_rows, key_columns * (int64_t)sizeof(Scalar), v.rows, p.head_dim, s.distance_queries);
      memset(s.grad_distance_queries, 0, (size_t)(p.head_dim * kBlock) * sizeof(Scalar));
    }
    if (p.distance_values.data) {
      if (value_columns != p.value_dim) memset(s.plain_grad_rows, 0, (size_t)(kBlock * value_columns) * sizeof(Scalar));
      for (int64_t row = 0; row < v.rows; ++row)
        widen(grads + row * a.grad_output.row_stride, p.value_dim, s.plain_grad_rows + row * value_columns);
      rows_to_tile(s.plain_grad_rows, value_columns * (int64_t)sizeof(Scalar), v.rows, p.value_dim, s.plain_grad_outputs);
    }
  }

  /* The lse of each query, as the weights need it: see `weight_of`. Weights of lanes without a query, and of queries that
   * see nothing, are 0. */
  void load_lse(const Scratch &s, const Visible &v, int64_t first_row) const {
    const Scalar *lse = (const Scalar *)a.lse + first_row, *low = (const Scalar *)a.lse_low;
    *s.large = 0;
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      s.lse[lane] = (Scalar)INFINITY;
      s.lse_low[lane] = s.huge[lane] = 0;
      if (lane >= v.rows || lse[lane] == -(Scalar)INFINITY) continue;
      const double rest = low ? (double)low[first_row + lane] : 0.0, size = fabs((double)lse[lane]);
      const double exponent = ((double)lse[lane] + rest) * kLog2E;
      const bool natural = !plain || size >= kHuge;
      if (size >= kLarge) *s.large = 1;
      s.huge[lane] = natural;
      s.lse[lane] = natural ? lse[lane] : (Scalar)exponent;
      s.lse_low[lane] = natural ? (Scalar)(rest * kLog2E) : (Scalar)(exponent - (double)(Scalar)exponent);
    }
  }

  /* D of each query: the sum of output times its gradient, minus that of the lse. */
  void load_means(const Scratch &s, const Visible &v, const Storage *grads, int64_t first_row) const {
    const Storage *outputs = row_of<Storage>(a.output, v.batch, v.head, v.block * kBlock);
    memset(s.means, 0, kBlock * sizeof(Scalar));
    if constexpr (Core::step_width == 1) {
      /* Element after element, as dP is summed: then P (dP - D) of a query that sees one key is 0 and not a rounding. */
      Scalar *rows = s.rows, *tile = s.rows + kBlock * p.value_dim;
      for (int64_t row = 0; row < v.rows; ++row)
        widen(outputs + row * a.output.row_stride, p.value_dim, rows + row * p.value_dim);
      rows_to_tile(rows, p.value_dim * (int64_t)sizeof(Scalar), v.rows, p.value_dim, tile);
      for (int lane = 0; lane < v.groups() * kGroup; lane += width) {
        Vector sum = Vector{};
        for (int64_t i = 0; i < p.value_dim; ++i)
          sum = multiply_add(load((const Scalar *)s.grad_outputs + i * kBlock + lane), load(tile + i * kBlock + lane), sum);
        store(s.means + lane, sum);
      }
    } else {
      Scalar *wide_grads = s.rows, *wide_outputs = s.rows + p.value_dim;
      for (int64_t lane = 0; lane < v.rows; ++lane) {
        widen(grads + lane * a.grad_output.row_stride, p.value_dim, wide_grads);
        widen(outputs + lane * a.output.row_stride, p.value_dim, wide_outputs);
        Scalar total = 0;
        for (int64_t i = 0; i < p.value_dim; ++i) total += wide_grads[i] * wide_outputs[i];
        s.means[lane] = total;
      }
    }
    if (a.grad_lse)
      for (int64_t lane = 0; lane < v.rows; ++lane) s.means[lane] -= ((const Scalar *)a.grad_lse)[first_row + lane];
    for (int64_t lane = v.rows; lane < kBlock; ++lane) s.means[lane] = 0;
  }

  struct TileRange {
    int64_t first, keys;
    int first_group, end_group, first_lane, columns;
    int64_t queries; /* lanes with a query, from first_lane */
    TileRange(const Visible &v, const Run &run, int64_t from, int64_t end)
        : first(from), keys(end - from), first_group(run.first_group), end_group(run.end_group),
          first_lane(run.first_group * kGroup), columns((run.end_group - run.first_group) * kGroup / width),
          queries((v.rows < run.end_group * kGroup ? v.rows : run.end_group * kGroup) - run.first_group * kGroup) {}
  };

  void tile(const Scratch &s, const Visible &v, const Run &run, int64_t first, int64_t end, int64_t split) {
    const TileRange t(v, run, first, end);
    weigh(s, v, run, t);
    if constexpr (Core::step_width == 2) {
      slant_pairs(s, run, t);
    } else {
      slant(s, v, run, t);
      if (a.grad_distance_bias) add_to_distance_bias(s, v, t, split);
      if (a.grad_bias.data && owns_bias(p)) add_to_bias(s, v, t);
      if (!plain && !a.grad_query.data) probe_products(s, t);
      if (!plain) bend(s, t);
    }
    sum_over_queries(s, t);
    sum_over_keys(s, v, t);
    if constexpr (Core::step_width == 1) {
      if (p.distance_keys.data || a.grad_distance_values) sum_by_distance(s, v, t, split);
    }
  }

  /* scores = the finished scores, products = dP. */
  void weigh(const Scratch &s, const Visible &v, const Run &run, const TileRange &t) const {
    const int64_t kv_head = v.head / (p.heads / p.kv_heads);
    const Unit *units =
        rows_as_units(row_of<Storage>(p.key, v.batch, kv_head, t.first), p.key.row_stride, t.keys, p.head_dim, raw_keys, s.keys);
    const int64_t key_stride = raw_keys ? p.key.row_stride / Core::step_width : key_units;
    const Product<Scalar> match{key_stride, 1, kBlock, kBlock, key_units, nullptr};
    multiply<Core, kStore, true>(match, units, t.keys, s.queries + t.first_lane, t.columns, s.scores + t.first_lane);
    if (!plain) finish_tile(s, v, t);
    if (run.masked()) {
      visible_words(run, t.first, t.first + t.keys, s.words);
      mask_scores(s.scores, s.words, t.keys, t.first_group, t.end_group);
    }
    units = rows_as_units(row_of<Storage>(p.value, v.batch, kv_head, t.first), p.value.row_stride, t.keys, p.value_dim,
                          raw_values, s.values);
    const int64_t value_stride = raw_values ? p.value.row_stride / Core::step_width : value_units;
    const Product<Scalar> back{value_stride, 1, kBlock, kBlock, value_units, nullptr};
    multiply<Core, kStore, true>(back, units, t.keys, s.grad_outputs + t.first_lane, t.columns, s.products + t.first_lane);
    if constexpr (Core::step_width == 1) {
      if (p.distance_values.data) {
        const Scalar *table = (const Scalar *)p.distance_values.data + v.head * p.distance_values.head_stride;
        match_distances(DistanceRows(p, v.block * kBlock, t.first, t.first + t.keys), table,
                        p.distance_values.row_stride, p.value_dim, s.plain_grad_outputs, s.distance_tile);
        add_by_distance(s.products, s.distance_tile, t.keys, t.first_group, t.end_group);
      }
    }
  }

  const Unit *rows_as_units(const Storage *rows, int64_t row_stride, int64_t count, int64_t elements, bool raw,
                            Unit *packed) const {
    if (raw) return (const Unit *)rows;
    for (int64_t row = 0; row < count; ++row)
      Pack::pack_row(rows + row * row_stride, elements, packed + row * units_in(elements));
    return packed;
  }

  void finish_tile(const Scratch &s, const Visible &v, const TileRange &t) const {
    ScoreTile<Scalar> at{p, v.batch, v.head, v.block * kBlock, v.rows, s.scores, s.added, nullptr,
                         p.softcap != 0 ? s.slopes : nullptr};
    if (p.distance_keys.data) {
      const Scalar *table = (const Scalar *)p.distance_keys.data + v.head * p.distance_keys.head_stride;
      match_distances(DistanceRows(p, at.first_query, t.first, t.first + t.keys), table, p.distance_keys.row_stride,
                      p.head_dim, s.distance_queries, s.distance_tile);
      at.by_distance = s.distance_tile;
    }
    finish_scores(at, t.first, t.first + t.keys, t.first_group, t.end_group);
  }

  /* D from the weights and dP themselves, where they are all at hand: what rounding took from the output is not in it.
   * What is not finite in the output is. */
  void exact_means(const Scratch &s, const Visible &v, const TileRange &t) const {
    const Vector unit = broadcast(unit_of<Scalar>(p)), scale = broadcast((Scalar)p.scale), none = Vector{};
    const Vector grown = broadcast((Scalar)p.keep_scale);
    const int64_t first_row = (v.batch * p.heads + v.head) * p.q_len + v.block * kBlock;
    for (int column = 0; column < t.columns; ++column) {
      const int lane = t.first_lane + column * width;
      const Lse lse(s, lane);
      Vector sum = load(s.means + lane) * Scalar(0);
      for (int64_t key = 0; key < t.keys; ++key) {
        const Vector score = load(s.scores + key * kBlock + lane);
        const Vector weight = weight_of(score, lse, unit, scale);
        Vector back = load(s.products + key * kBlock + lane);
        if (p.drop_below) back = back * where_bit(s.kept[key], lane, grown, none);
        sum = score == -INFINITY ? sum : multiply_add(weight, back, sum);
      }
      store(s.means + lane, sum);
    }
    if (a.grad_lse)
      for (int64_t lane = t.first_lane; lane < t.first_lane + t.queries; ++lane)
        s.means[lane] -= ((const Scalar *)a.grad_lse)[first_row + lane];
  }

  /* What a vector of queries divides by. */
  struct Lse {
    Vector lse, low, huge;
    bool large;
    Lse(const Scratch &s, int lane)
        : lse(load(s.lse + lane)), low(load(s.lse_low + lane)), huge(load(s.huge + lane)), large(*s.large) {}
  };

  /* The weight of a score in a tile. A score that has more than its product with the scale in it is compared before it is
   * multiplied, and so is a huge one, whose multiple may be infinite. */
  REGARD_INLINE Vector weight_of(Vector score, const Lse &by, Vector unit, Vector scale) const {
    if (!plain) return weight_below(score, by.lse, broadcast((Scalar)kLog2E), by.low);
    if (!by.large) return exact_weight(score, unit, by.lse, by.low);
    const Vector whole = weight_below(rounded_product(score, scale), by.lse, broadcast((Scalar)kLog2E), by.low);
    return by.huge != 0 ? whole : exact_weight_of_large(score, unit, by.lse, by.low);
  }

  /* scores = P with its dropout, products = P (dP - D) scale: what comes back through the softmax. */
  void slant(const Scratch &s, const Visible &v, const Run &run, const TileRange &t) const {
    const Vector unit = broadcast(unit_of<Scalar>(p)), scale = broadcast((Scalar)p.scale);
    const Vector grown = broadcast((Scalar)p.keep_scale), none = Vector{};
    if (p.drop_below) dropout_words(p, v.batch, v.head, v.block * kBlock, t.first, t.first + t.keys, s.kept);
    if (*s.alone) exact_means(s, v, t);
    const bool some_forbidden = !plain || run.masked();
    const bool through_softmax_only = !plain; /* the scale comes after the bias and the softcap: see bend */
    for (int column = 0; column < t.columns; ++column) {
      const int lane = t.first_lane + column * width;
      const Lse lse(s, lane);
      const Vector mean = load(s.means + lane);
      for (int64_t key = 0; key < t.keys; ++key) {
        Scalar *at = s.scores + key * kBlock + lane, *product = s.products + key * kBlock + lane;
        const Vector score = load(at);
        Vector weight = weight_of(score, lse, unit, scale), back = load(product);
        /* A pair that a mask or a bias forbids has no part, whatever the row holds. */
        if (some_forbidden) weight = score == -INFINITY ? none : weight;
        Vector shown = weight;
        if (p.drop_below) {
          const Vector kept = where_bit(s.kept[key], lane, grown, none);
          shown = weight * kept;
          back = back * kept;
        }
        back = weight * (back - mean);
        if (some_forbidden) back = score == -INFINITY ? none : back;
        store(at, shown);
        store(product, through_softmax_only ? back : back * scale);
      }
    }
  }

  /* Where no gradient of the query will show it: is what the bias and the tables were given finite? */
  void probe_products(const Scratch &s, const TileRange &t) {
    Scalar probe = 0;
    for (int64_t key = 0; key < t.keys; ++key)
      for (int64_t lane = t.first_lane; lane < t.first_lane + t.queries; ++lane)
        probe += s.products[key * kBlock + lane] * 0;
    note(probe);
  }

  /* products = the gradient of the dot products. */
  void bend(const Scratch &s, const TileRange &t) const {
    for (int64_t key = 0; key < t.keys; ++key)
      for (int column = 0; column < t.columns; ++column) {
        const int64_t at = key * kBlock + t.first_lane + column * width;
        Vector back = load(s.products + at) * (Scalar)p.scale;
        if (p.softcap != 0) back = back * load(s.slopes + at);
        store(s.products + at, back);
      }
  }

  /* The same in bfloat16, for plain problems: weights and slants along the queries, slant_steps along the keys. */
  void slant_pairs(const Scratch &s, const Run &run, const TileRange &t) const {
#if defined(REGARD_HAS_PAIRS)
    if constexpr (Core::step_width == 2) {
      const Floats unit = broadcast((float)(p.scale * kLog2E)), scale = broadcast((float)p.scale);
      constexpr int64_t stride = kBlock / 2;
      for (int column = 0; column < t.columns; ++column) {
        const int lane = t.first_lane + column * width;
        const Lse lse(s, lane);
        const Floats mean = load(s.means + lane);
        for (int64_t key = 0; key < t.keys; key += 2) {
          Floats slants[2] = {Floats{}, Floats{}};
          for (int64_t i = 0; i < 2 && key + i < t.keys; ++i) {
            const int64_t at = (key + i) * kBlock + lane;
            Floats weight = lse.large ? weight_of(load(s.scores + at), lse, unit, scale)
                                      : power_of_two<Core::precision>(multiply_add(load(s.scores + at), unit, -lse.lse));
            slants[i] = weight * scale * (load(s.products + at) - mean);
            if (run.masked()) {
              weight = where_bit(s.words[key + i], lane, weight, Floats{});
              slants[i] = where_bit(s.words[key + i], lane, slants[i], Floats{});
            }
            store_halves(s.weights + (key + i) * stride + lane / 2, weight);
            store_halves(s.slants + (key + i) * stride + lane / 2, slants[i]);
          }
          store_pairs(s.slant_steps + key / 2 * kBlock + lane, slants[0], slants[1]);
        }
      }
    }
#else
    (void)s, (void)run, (void)t;
#endif
  }

  /* dV += P^T dO, dK += dS^T Q: lanes are elements of a row, steps are queries. */
  void sum_over_queries(const Scratch &s, const TileRange &t) const {
    constexpr int64_t row = kBlock / Core::step_width;
    const int64_t first_step = t.first_lane / Core::step_width;
    const int64_t steps = (t.queries + Core::step_width - 1) / Core::step_width;
    const Unit *weights = Core::step_width == 1 ? (const Unit *)s.scores : s.weights;
    const Unit *slants = Core::step_width == 1 ? (const Unit *)s.products : s.slants;
    Scalar *grad_keys = s.sums + t.first * key_columns;
    Scalar *grad_values = s.sums + p.kv_len * key_columns + t.first * value_columns;
    if (a.grad_value.data) {
      const Product<Scalar> product{row, 1, value_columns, value_columns, steps, nullptr};
      multiply<Core, kAdd, true>(product, weights + first_step, t.keys, s.grad_output_rows + first_step * value_columns,
                                 (int)(value_columns / width), grad_values);
    }
    if (a.grad_key.data) {
      const Product<Scalar> product{row, 1, key_columns, key_columns, steps, nullptr};
      multiply<Core, kAdd, true>(product, slants + first_step, t.keys, s.query_rows + first_step * key_columns,
                                 (int)(key_columns / width), grad_keys);
    }
  }

  /* dQ += dS K */
  void sum_over_keys(const Scratch &s, const Visible &v, const TileRange &t) const {
    if (!a.grad_query.data) return;
    const Storage *rows = row_of<Storage>(p.key, v.batch, v.head / (p.heads / p.kv_heads), t.first);
    const Unit *units = (const Unit *)rows, *slants = (const Unit *)s.products;
    int64_t stride = p.key.row_stride;
    if (Core::step_width == 2) {
      Pack::pack_steps(rows, p.key.row_stride, t.keys, p.head_dim, s.key_steps, p.head_dim);
      units = s.key_steps;
      slants = s.slant_steps;
      stride = p.head_dim;
    } else if (!raw_keys) {
      units = s.keys;
      stride = key_units;
    }
    const int64_t steps = (t.keys + Core::step_width - 1) / Core::step_width;
    const Product<Scalar> product{1, stride, kBlock, kBlock, steps, nullptr};
    multiply<Core, kAdd, false>(product, units, p.head_dim, slants + t.first_lane, t.columns, s.grad_queries + t.first_lane);
  }

  /* The gradients of distance_query, distance_keys and distance_values. */
  void sum_by_distance(const Scratch &s, const Visible &v, const TileRange &t, int64_t split) const {
    const DistanceRows rows(p, v.block * kBlock, t.first, t.first + t.keys);
    const int64_t all_rows = p.q_len + p.kv_len - 1, place = (v.batch * p.heads + v.head) * splits + split;
    if (p.distance_keys.data) {
      spread_by_distance(s.distance_tile, s.products, t.keys, t.first_group, t.end_group);
      const Scalar *table = (const Scalar *)p.distance_keys.data + v.head * p.distance_keys.head_stride;
      combine_distances(rows, table, p.distance_keys.row_stride, p.head_dim, s.distance_tile, s.grad_distance_queries);
      if (a.grad_distance_keys)
        add_rows(s, rows, s.distance_query_rows, key_columns, p.head_dim, v.rows,
                 (Scalar *)a.grad_distance_keys + (place * all_rows + rows.table_row) * p.head_dim);
    }
    if (a.grad_distance_values) {
      spread_by_distance(s.distance_tile, s.scores, t.keys, t.first_group, t.end_group);
      add_rows(s, rows, s.plain_grad_rows, value_columns, p.value_dim, v.rows,
               (Scalar *)a.grad_distance_values + (place * all_rows + rows.table_row) * p.value_dim);
    }
  }

  /* to[row] += the tile by distance times rows [64][columns]. */
  void add_rows(const Scratch &s, const DistanceRows &rows, const Scalar *vectors, int64_t columns, int64_t elements,
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
  void add_to_distance_bias(const Scratch &s, const Visible &v, const TileRange &t, int64_t split) const {
    const int64_t all_rows = p.q_len + p.kv_len - 1, place = (v.batch * p.heads + v.head) * splits + split;
    double *table = (double *)a.grad_distance_bias + place * all_rows; /* whole diagonals: long sums */
    const int64_t corner = t.first - v.block * kBlock + p.distance_offset;
    for (int64_t key = 0; key < t.keys; ++key)
      for (int64_t lane = t.first_lane; lane < t.first_lane + t.queries; ++lane)
        table[corner + key - lane] += (double)s.products[key * kBlock + lane];
  }

  /* dz summed where the bias is shared. */
  void add_to_bias(const Scratch &s, const Visible &v, const TileRange &t) const {
    const regard_pairs &grad = a.grad_bias;
    Scalar *to = (Scalar *)grad.data + v.batch * grad.batch_stride + v.head * grad.head_stride +
                 v.block * kBlock * grad.query_stride + t.first * grad.key_stride;
    const int64_t last_lane = t.first_lane + t.queries;
    if (grad.key_stride == 0 && grad.query_stride != 0) { /* long sums, so not one by one in float */
      for (int64_t lane = t.first_lane; lane < last_lane; ++lane) {
        double sum = 0;
        for (int64_t key = 0; key < t.keys; ++key) sum += (double)s.products[key * kBlock + lane];
        to[lane * grad.query_stride] += (Scalar)sum;
      }
      return;
    }
    if (grad.query_stride == 0) {
      for (int64_t key = 0; key < t.keys; ++key) {
        double sum = 0;
        for (int64_t lane = t.first_lane; lane < last_lane; ++lane) sum += (double)s.products[key * kBlock + lane];
        to[key * grad.key_stride] += (Scalar)sum;
      }
      return;
    }
    for (int64_t lane = t.first_lane; lane < last_lane; ++lane)
      for (int64_t key = 0; key < t.keys; ++key)
        to[lane * grad.query_stride + key * grad.key_stride] += s.products[key * kBlock + lane];
  }

  void finish(const Scratch &s, const Visible &v) {
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
      Scratch s;
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

  void bias_block(const Scratch &s, const Visible &v) const {
    begin(s, v);
    v.for_each_run([&](const Run &run) {
      for (int64_t key = run.first; key < run.end; key += most_keys) {
        const TileRange t(v, run, key, key + most_keys < run.end ? key + most_keys : run.end);
        weigh(s, v, run, t);
        slant(s, v, run, t);
        add_to_bias(s, v, t);
      }
    });
  }
};
