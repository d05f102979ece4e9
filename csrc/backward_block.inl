/* backward_block.inl: a block of 64 queries as backward meets the keys with it: what is loaded of it, and the scratch
 * memory of a task. */

template <class Core, class Storage>
struct BackwardBlock {
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Unit Unit;
  typedef Units<Core, Storage> Pack;
  typedef VectorOf<Scalar> Vector;
  static constexpr int width = Simd<Scalar>::width;
  static constexpr int64_t most_keys = 64;

  const regard_problem &p;
  const regard_backward_arguments &a;
  const int64_t key_units, value_units;     /* units of a row */
  const int64_t key_columns, value_columns; /* head_dim and value_dim in whole vectors, as numbers */
  const bool plain, raw_keys, raw_values;

  bool alone = false;                   /* one tile has all keys that the block sees */
  bool large = false;                   /* some lse is too large for the quick way to a weight */
  Unit *queries, *grad_outputs;         /* [units][64] */
  Unit *query_rows, *grad_output_rows;  /* [64 or 32 steps][columns]: what dK and dV are summed from */
  Unit *keys, *values;                  /* [most_keys][units], when packed */
  Unit *key_steps;                      /* [most_keys steps][head_dim], when packed */
  Scalar *scores, *products;            /* [most_keys][64]: P, and dP that becomes dS */
  Unit *weights, *slants, *slant_steps; /* P and dS as units along the queries; dS as units along the keys */
  Scalar *grad_queries;                 /* [head_dim][64] */
  Scalar *added, *slopes;               /* [most_keys][64] */
  Scalar *distance_queries, *grad_distance_queries; /* [head_dim][64] */
  Scalar *distance_query_rows, *plain_grad_rows;    /* [64][columns] */
  Scalar *plain_grad_outputs;                       /* [value_dim][64] */
  Scalar *distance_tile;                            /* [most_keys + 64][64] */
  Scalar *added_rows;                               /* [most_keys + 64][width] */
  Scalar *lse, *lse_low, *means;                    /* [64]; the last is D */
  Scalar *huge; /* [64]: 1 where it is so large that the lse is a natural logarithm */
  Scalar *rows; /* [64][columns] */
  uint64_t *words, *kept;
  Scalar *sums; /* dK and dV: [kv_len][key_columns], [kv_len][value_columns] */

  BackwardBlock(const regard_problem &problem, const regard_backward_arguments &arguments)
      : p(problem),
        a(arguments),
        key_units(units_in(problem.head_dim)),
        value_units(units_in(problem.value_dim)),
        key_columns(whole_vectors(problem.head_dim)),
        value_columns(whole_vectors(problem.value_dim)),
        plain(is_plain(problem)),
        raw_keys(Pack::is_raw && problem.head_dim % Core::step_width == 0 &&
                 problem.key.row_stride % Core::step_width == 0),
        raw_values(Pack::is_raw && problem.value_dim % Core::step_width == 0 &&
                   problem.value.row_stride % Core::step_width == 0) {}

  static int64_t units_in(int64_t elements) { return (elements + Core::step_width - 1) / Core::step_width; }
  static int64_t whole_vectors(int64_t elements) { return (elements + width - 1) / width * width; }
  int64_t sums_size() const { return p.kv_len * (key_columns + value_columns); }

  /* Where everything lies from `memory` on, and how many bytes that takes; with NULL only the latter. */
  int64_t lay_out(char *memory, bool with_sums) {
    char *cursor = memory;
    const auto units = [&](int64_t count) { return (Unit *)take_aligned(&cursor, count * (int64_t)sizeof(Unit)); };
    const auto numbers = [&](int64_t count) {
      return (Scalar *)take_aligned(&cursor, count * (int64_t)sizeof(Scalar));
    };
    const bool tables = p.distance_keys.data || p.distance_values.data;
    const int64_t steps = kBlock / Core::step_width,
                  columns = key_columns > value_columns ? key_columns : value_columns;
    scores = numbers(most_keys * kBlock);
    products = numbers(most_keys * kBlock);
    queries = units(key_units * kBlock);
    grad_outputs = units(value_units * kBlock);
    query_rows = units(steps * key_columns);
    grad_output_rows = units(steps * value_columns);
    grad_queries = numbers(p.head_dim * kBlock);
    keys = units(raw_keys ? 0 : most_keys * key_units);
    values = units(raw_values ? 0 : most_keys * value_units);
    key_steps = units(Core::step_width == 1 ? 0 : most_keys / Core::step_width * p.head_dim);
    weights = units(Core::step_width == 1 ? 0 : most_keys * steps);
    slants = units(Core::step_width == 1 ? 0 : most_keys * steps);
    slant_steps = units(Core::step_width == 1 ? 0 : most_keys / Core::step_width * kBlock);
    added = numbers(p.bias.data ? most_keys * kBlock : 0);
    slopes = numbers(p.softcap != 0 ? most_keys * kBlock : 0);
    distance_queries = numbers(p.distance_keys.data ? p.head_dim * kBlock : 0);
    grad_distance_queries = numbers(p.distance_keys.data ? p.head_dim * kBlock : 0);
    distance_query_rows = numbers(p.distance_keys.data ? kBlock * key_columns : 0);
    plain_grad_rows = numbers(p.distance_values.data ? kBlock * value_columns : 0);
    plain_grad_outputs = numbers(p.distance_values.data ? p.value_dim * kBlock : 0);
    distance_tile = numbers(tables ? (most_keys + kBlock) * kBlock : 0);
    added_rows = numbers(tables ? (most_keys + kBlock) * width : 0);
    lse = numbers(kBlock);
    lse_low = numbers(kBlock);
    means = numbers(kBlock);
    huge = numbers(kBlock);
    rows = numbers(2 * kBlock * columns);
    words = (uint64_t *)take_aligned(&cursor, most_keys * 8);
    kept = (uint64_t *)take_aligned(&cursor, p.drop_below ? most_keys * 8 : 0);
    sums = numbers(with_sums ? sums_size() : 0);
    return cursor - memory;
  }

  void begin(const Visible &v) {
    int64_t tiles = 0;
    v.for_each_run([&](const Run &run) { tiles += (run.end - run.first + most_keys - 1) / most_keys; });
    alone = tiles == 1;
    const int64_t first = v.block * kBlock;
    const Storage *grads = row_of<Storage>(a.grad_output, v.batch, v.head, first);
    load_rows(row_of<Storage>(p.query, v.batch, v.head, first), p.query.row_stride, v.rows, p.head_dim, key_columns,
              queries, query_rows);
    load_rows(grads, a.grad_output.row_stride, v.rows, p.value_dim, value_columns, grad_outputs, grad_output_rows);
    const int64_t first_row = (v.batch * p.heads + v.head) * p.q_len + first;
    load_lse(v, first_row);
    load_means(v, grads, first_row);
    memset(grad_queries, 0, (size_t)(p.head_dim * kBlock) * sizeof(Scalar));
    if (p.distance_keys.data) {
      const Scalar *met = row_of<Scalar>(p.distance_query, v.batch, v.head, first);
      if (key_columns != p.head_dim) memset(distance_query_rows, 0, (size_t)(kBlock * key_columns) * sizeof(Scalar));
      for (int64_t row = 0; row < v.rows; ++row)
        widen(met + row * p.distance_query.row_stride, p.head_dim, distance_query_rows + row * key_columns);
      rows_to_tile(distance_query_rows, key_columns * (int64_t)sizeof(Scalar), v.rows, p.head_dim, distance_queries);
      memset(grad_distance_queries, 0, (size_t)(p.head_dim * kBlock) * sizeof(Scalar));
    }
    if (p.distance_values.data) {
      if (value_columns != p.value_dim) memset(plain_grad_rows, 0, (size_t)(kBlock * value_columns) * sizeof(Scalar));
      for (int64_t row = 0; row < v.rows; ++row)
        widen(grads + row * a.grad_output.row_stride, p.value_dim, plain_grad_rows + row * value_columns);
      rows_to_tile(plain_grad_rows, value_columns * (int64_t)sizeof(Scalar), v.rows, p.value_dim, plain_grad_outputs);
    }
  }

 private:
  /* Rows of queries or output gradients as units [units][64] and, for sums over queries, as [steps][columns]. */
  void load_rows(const Storage *from, int64_t row_stride, int64_t count, int64_t elements, int64_t columns, Unit *tile,
                 Unit *step_rows) {
    const int64_t units = units_in(elements);
    if (Pack::is_raw && elements % Core::step_width == 0) {
      rows_to_tile(from, row_stride * (int64_t)sizeof(Storage), count, units, tile);
    } else {
      for (int64_t row = 0; row < count; ++row)
        Pack::pack_row(from + row * row_stride, elements, (Unit *)rows + row * units);
      rows_to_tile(rows, units * (int64_t)sizeof(Unit), count, units, tile);
    }
    if (columns != elements) memset(step_rows, 0, (size_t)(kBlock / Core::step_width * columns) * sizeof(Unit));
    Pack::pack_steps(from, row_stride, count, elements, step_rows, columns);
  }

  /* The lse of each query, as the weights need it: see `weight_of`. Weights of lanes without a query, and of queries that
   * see nothing, are 0. */
  void load_lse(const Visible &v, int64_t first_row) {
    const Scalar *given = (const Scalar *)a.lse + first_row, *given_low = (const Scalar *)a.lse_low;
    large = false;
    for (int64_t lane = 0; lane < kBlock; ++lane) {
      lse[lane] = (Scalar)INFINITY;
      lse_low[lane] = huge[lane] = 0;
      if (lane >= v.rows || given[lane] == -(Scalar)INFINITY) continue;
      const double rest = given_low ? (double)given_low[first_row + lane] : 0.0, size = fabs((double)given[lane]);
      const double exponent = ((double)given[lane] + rest) * kLog2E;
      const bool natural = !plain || size >= kHuge;
      if (size >= kLarge) large = true;
      huge[lane] = natural;
      lse[lane] = natural ? given[lane] : (Scalar)exponent;
      lse_low[lane] = natural ? (Scalar)(rest * kLog2E) : (Scalar)(exponent - (double)(Scalar)exponent);
    }
  }

  /* D of each query: the sum of output times its gradient, minus that of the lse. */
  void load_means(const Visible &v, const Storage *grads, int64_t first_row) {
    const Storage *outputs = row_of<Storage>(a.output, v.batch, v.head, v.block * kBlock);
    memset(means, 0, kBlock * sizeof(Scalar));
    if constexpr (Core::step_width == 1) {
      /* Element after element, as dP is summed: then P (dP - D) of a query that sees one key is 0 and not a rounding. */
      Scalar *wide = rows, *tile = rows + kBlock * p.value_dim;
      for (int64_t row = 0; row < v.rows; ++row)
        widen(outputs + row * a.output.row_stride, p.value_dim, wide + row * p.value_dim);
      rows_to_tile(wide, p.value_dim * (int64_t)sizeof(Scalar), v.rows, p.value_dim, tile);
      for (int lane = 0; lane < v.groups() * kGroup; lane += width) {
        Vector sum = Vector{};
        for (int64_t i = 0; i < p.value_dim; ++i)
          sum =
              multiply_add(load((const Scalar *)grad_outputs + i * kBlock + lane), load(tile + i * kBlock + lane), sum);
        store(means + lane, sum);
      }
    } else {
      Scalar *wide_grads = rows, *wide_outputs = rows + p.value_dim;
      for (int64_t lane = 0; lane < v.rows; ++lane) {
        widen(grads + lane * a.grad_output.row_stride, p.value_dim, wide_grads);
        widen(outputs + lane * a.output.row_stride, p.value_dim, wide_outputs);
        Scalar total = 0;
        for (int64_t i = 0; i < p.value_dim; ++i) total += wide_grads[i] * wide_outputs[i];
        means[lane] = total;
      }
    }
    if (a.grad_lse)
      for (int64_t lane = 0; lane < v.rows; ++lane) means[lane] -= ((const Scalar *)a.grad_lse)[first_row + lane];
    for (int64_t lane = v.rows; lane < kBlock; ++lane) means[lane] = 0;
  }
};
