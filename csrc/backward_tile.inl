/* backward_tile.inl: a block of queries and up to 64 keys: the weights once more, what comes back through them, and what
 * that adds to the gradients of queries, keys and values. */

template <class Core, class Storage>
struct BackwardTile {
  typedef BackwardBlock<Core, Storage> Block;
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Unit Unit;
  typedef Units<Core, Storage> Pack;
  typedef VectorOf<Scalar> Vector;
  static constexpr int width = Simd<Scalar>::width;

  const Block &s;
  const regard_problem &p;
  const regard_backward_arguments &a;
  const Visible &v;
  const Run &run;
  const int64_t first, keys;
  const int first_group, end_group, first_lane, columns;
  const int64_t queries; /* lanes with a query, from first_lane */

  BackwardTile(const Block &block, const Visible &visible, const Run &some, int64_t from, int64_t end)
      : s(block),
        p(block.p),
        a(block.a),
        v(visible),
        run(some),
        first(from),
        keys(end - from),
        first_group(run.first_group),
        end_group(run.end_group),
        first_lane(run.first_group * kGroup),
        columns((run.end_group - run.first_group) * kGroup / width),
        queries((v.rows < run.end_group * kGroup ? v.rows : run.end_group * kGroup) - run.first_group * kGroup) {}

  /* scores = the finished scores, products = dP. */
  void weigh() const {
    const int64_t kv_head = v.head / (p.heads / p.kv_heads);
    const Unit *units = rows_as_units(row_of<Storage>(p.key, v.batch, kv_head, first), p.key.row_stride, keys,
                                      p.head_dim, s.raw_keys, s.keys);
    const int64_t key_stride = s.raw_keys ? p.key.row_stride / Core::step_width : s.key_units;
    const Product<Scalar> match{key_stride, 1, kBlock, kBlock, s.key_units, nullptr};
    multiply<Core, kStore, true>(match, units, keys, s.queries + first_lane, columns, s.scores + first_lane);
    if (!s.plain) finish();
    if (run.masked()) {
      visible_words(run, first, first + keys, s.words);
      mask_scores(s.scores, s.words, keys, first_group, end_group);
    }
    units = rows_as_units(row_of<Storage>(p.value, v.batch, kv_head, first), p.value.row_stride, keys, p.value_dim,
                          s.raw_values, s.values);
    const int64_t value_stride = s.raw_values ? p.value.row_stride / Core::step_width : s.value_units;
    const Product<Scalar> back{value_stride, 1, kBlock, kBlock, s.value_units, nullptr};
    multiply<Core, kStore, true>(back, units, keys, s.grad_outputs + first_lane, columns, s.products + first_lane);
    if constexpr (Core::step_width == 1) {
      if (p.distance_values.data) {
        const Scalar *table = (const Scalar *)p.distance_values.data + v.head * p.distance_values.head_stride;
        match_distances(DistanceRows(p, v.block * kBlock, first, first + keys), table, p.distance_values.row_stride,
                        p.value_dim, s.plain_grad_outputs, s.distance_tile);
        add_by_distance(s.products, s.distance_tile, keys, first_group, end_group);
      }
    }
  }

  const Unit *rows_as_units(const Storage *rows, int64_t row_stride, int64_t count, int64_t elements, bool raw,
                            Unit *packed) const {
    if (raw) return (const Unit *)rows;
    for (int64_t row = 0; row < count; ++row)
      Pack::pack_row(rows + row * row_stride, elements, packed + row * Block::units_in(elements));
    return packed;
  }

  void finish() const {
    ScoreTile<Scalar> at{
        p, v.batch, v.head, v.block * kBlock, v.rows, s.scores, s.added, nullptr, p.softcap != 0 ? s.slopes : nullptr};
    if (p.distance_keys.data) {
      const Scalar *table = (const Scalar *)p.distance_keys.data + v.head * p.distance_keys.head_stride;
      match_distances(DistanceRows(p, at.first_query, first, first + keys), table, p.distance_keys.row_stride,
                      p.head_dim, s.distance_queries, s.distance_tile);
      at.by_distance = s.distance_tile;
    }
    finish_scores(at, first, first + keys, first_group, end_group);
  }

  /* D from the weights and dP themselves, where they are all at hand: what rounding took from the output is not in it.
   * What is not finite in the output is. */
  void exact_means() const {
    const Vector unit = broadcast(unit_of<Scalar>(p)), scale = broadcast((Scalar)p.scale), none = Vector{};
    const Vector grown = broadcast((Scalar)p.keep_scale);
    const int64_t first_row = (v.batch * p.heads + v.head) * p.q_len + v.block * kBlock;
    for (int column = 0; column < columns; ++column) {
      const int lane = first_lane + column * width;
      const Lse lse(s, lane);
      Vector sum = load(s.means + lane) * Scalar(0);
      for (int64_t key = 0; key < keys; ++key) {
        const Vector score = load(s.scores + key * kBlock + lane);
        const Vector weight = weight_of(score, lse, unit, scale);
        Vector back = load(s.products + key * kBlock + lane);
        if (p.drop_below) back = back * where_bit(s.kept[key], lane, grown, none);
        sum = score == -INFINITY ? sum : multiply_add(weight, back, sum);
      }
      store(s.means + lane, sum);
    }
    if (a.grad_lse)
      for (int64_t lane = first_lane; lane < first_lane + queries; ++lane)
        s.means[lane] -= ((const Scalar *)a.grad_lse)[first_row + lane];
  }

  /* What a vector of queries divides by. */
  struct Lse {
    Vector lse, low, huge;
    bool large;
    Lse(const Block &s, int lane)
        : lse(load(s.lse + lane)), low(load(s.lse_low + lane)), huge(load(s.huge + lane)), large(s.large) {}
  };

  /* The weight of a score in a tile. A score that has more than its product with the scale in it is compared before it is
   * multiplied, and so is a huge one, whose multiple may be infinite. */
  REGARD_INLINE Vector weight_of(Vector score, const Lse &by, Vector unit, Vector scale) const {
    if (!s.plain)
      return by.large ? weight_below(score, by.lse, broadcast((Scalar)kLog2E), by.low)
                      : weight_a_little_below(score, by.lse, broadcast((Scalar)kLog2E), by.low);
    if (!by.large) return exact_weight(score, unit, by.lse, by.low);
    const Vector whole = weight_below(rounded_product(score, scale), by.lse, broadcast((Scalar)kLog2E), by.low);
    return by.huge != 0 ? whole : exact_weight_of_large(score, unit, by.lse, by.low);
  }

  /* scores = P with its dropout, products = P (dP - D) scale: what comes back through the softmax. */
  void slant() const {
    const Vector unit = broadcast(unit_of<Scalar>(p)), scale = broadcast((Scalar)p.scale);
    const Vector grown = broadcast((Scalar)p.keep_scale), none = Vector{};
    if (p.drop_below) dropout_words(p, v.batch, v.head, v.block * kBlock, first, first + keys, s.kept);
    if (s.alone) exact_means();
    const bool some_forbidden = !s.plain || run.masked();
    const bool through_softmax_only = !s.plain; /* the scale comes after the bias and the softcap: see bend */
    for (int column = 0; column < columns; ++column) {
      const int lane = first_lane + column * width;
      const Lse lse(s, lane);
      const Vector mean = load(s.means + lane);
      for (int64_t key = 0; key < keys; ++key) {
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
  Scalar probe() const {
    const int64_t end = first_lane + queries, whole = first_lane + queries / width * width;
    Vector sums{};
    Scalar sum = 0;
    for (int64_t key = 0; key < keys; ++key) {
      const Scalar *row = s.products + key * kBlock;
      for (int64_t lane = first_lane; lane < whole; lane += width) sums = sums + load(row + lane) * Scalar(0);
      for (int64_t lane = whole; lane < end; ++lane) sum += row[lane] * 0;
    }
    return sum + sum_of_lanes(sums);
  }

  /* products = the gradient of the dot products. */
  void bend() const {
    for (int64_t key = 0; key < keys; ++key)
      for (int column = 0; column < columns; ++column) {
        const int64_t at = key * kBlock + first_lane + column * width;
        Vector back = load(s.products + at) * (Scalar)p.scale;
        if (p.softcap != 0) back = back * load(s.slopes + at);
        store(s.products + at, back);
      }
  }

  /* The same in bfloat16, for plain problems: weights and slants along the queries, slant_steps along the keys. */
  void slant_pairs() const {
#if defined(REGARD_HAS_PAIRS)
    if constexpr (Core::step_width == 2) {
      const Floats unit = broadcast((float)(p.scale * kLog2E)), scale = broadcast((float)p.scale);
      constexpr int64_t stride = kBlock / 2;
      for (int column = 0; column < columns; ++column) {
        const int lane = first_lane + column * width;
        const Lse lse(s, lane);
        const Floats mean = load(s.means + lane);
        for (int64_t key = 0; key < keys; key += 2) {
          Floats slants[2] = {Floats{}, Floats{}};
          for (int64_t i = 0; i < 2 && key + i < keys; ++i) {
            const int64_t at = (key + i) * kBlock + lane;
            Floats weight = lse.large
                                ? weight_of(load(s.scores + at), lse, unit, scale)
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
#endif
  }

  /* dV += P^T dO, dK += dS^T Q: lanes are elements of a row, steps are queries. */
  void sum_over_queries() const {
    constexpr int64_t row = kBlock / Core::step_width;
    const int64_t first_step = first_lane / Core::step_width;
    const int64_t steps = (queries + Core::step_width - 1) / Core::step_width;
    const Unit *weights = Core::step_width == 1 ? (const Unit *)s.scores : s.weights;
    const Unit *slants = Core::step_width == 1 ? (const Unit *)s.products : s.slants;
    Scalar *grad_keys = s.sums + first * s.key_columns;
    Scalar *grad_values = s.sums + p.kv_len * s.key_columns + first * s.value_columns;
    if (a.grad_value.data) {
      const Product<Scalar> product{row, 1, s.value_columns, s.value_columns, steps, nullptr};
      multiply<Core, kAdd, true>(product, weights + first_step, keys, s.grad_output_rows + first_step * s.value_columns,
                                 (int)(s.value_columns / width), grad_values);
    }
    if (a.grad_key.data) {
      const Product<Scalar> product{row, 1, s.key_columns, s.key_columns, steps, nullptr};
      multiply<Core, kAdd, true>(product, slants + first_step, keys, s.query_rows + first_step * s.key_columns,
                                 (int)(s.key_columns / width), grad_keys);
    }
  }

  /* dQ += dS K */
  void sum_over_keys() const {
    if (!a.grad_query.data) return;
    const Storage *rows = row_of<Storage>(p.key, v.batch, v.head / (p.heads / p.kv_heads), first);
    const Unit *units = (const Unit *)rows, *slants = (const Unit *)s.products;
    int64_t stride = p.key.row_stride;
    if (Core::step_width == 2) {
      Pack::pack_steps(rows, p.key.row_stride, keys, p.head_dim, s.key_steps, p.head_dim);
      units = s.key_steps;
      slants = s.slant_steps;
      stride = p.head_dim;
    } else if (!s.raw_keys) {
      units = s.keys;
      stride = s.key_units;
    }
    const int64_t steps = (keys + Core::step_width - 1) / Core::step_width;
    const Product<Scalar> product{1, stride, kBlock, kBlock, steps, nullptr};
    multiply<Core, kAdd, false>(product, units, p.head_dim, slants + first_lane, columns, s.grad_queries + first_lane);
  }
};
