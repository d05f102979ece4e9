/* distance.inl: terms that depend on the distance of a pair, as products with a table of vectors.
 *
 * For a tile of keys [first, end) and a block of 64 queries the distances that occur are keys + 63 neighbouring rows
 * of the table. A tile by distance has row (key - first) - lane + 63 where a tile by key has row key - first. */

/* The table's rows that a tile meets; those outside of it belong to lanes past the last query. */
struct DistanceRows {
  int64_t tile_row, table_row, count, all;

  DistanceRows(const regard_problem &p, int64_t first_query, int64_t first, int64_t end) {
    all = end - first + kBlock - 1;
    const int64_t lowest = first - (first_query + kBlock - 1) + p.distance_offset, rows = p.q_len + p.kv_len - 1;
    tile_row = lowest < 0 ? -lowest : 0;
    table_row = lowest + tile_row;
    count = all - tile_row < rows - table_row ? all - tile_row : rows - table_row;
  }
};

/* by_distance = the table's rows times the block's vectors [width][64]. */
template <class Scalar>
void match_distances(const DistanceRows &rows, const Scalar *table, int64_t row_stride, int64_t width,
                     const Scalar *vectors, Scalar *by_distance) {
  memset(by_distance, 0, (size_t)(rows.all * kBlock) * sizeof(Scalar));
  const Product<Scalar> product{row_stride, 1, kBlock, kBlock, width, nullptr};
  multiply<PlainCore<Scalar>, kStore, true>(product, table + rows.table_row * row_stride, rows.count, vectors,
                                            kBlock / Simd<Scalar>::width, by_distance + rows.tile_row * kBlock);
}

/* by_key[key][lane] += by_distance[key - lane + 63][lane] */
template <class Scalar>
void add_by_distance(Scalar *by_key, const Scalar *by_distance, int64_t keys, int first_group, int end_group) {
  for (int64_t key = 0; key < keys; ++key)
    for (int64_t lane = first_group * kGroup; lane < end_group * kGroup; ++lane)
      by_key[key * kBlock + lane] += by_distance[(key - lane + kBlock - 1) * kBlock + lane];
}

/* by_distance[key - lane + 63][lane] = by_key[key][lane], and 0 elsewhere. */
template <class Scalar>
void spread_by_distance(Scalar *by_distance, const Scalar *by_key, int64_t keys, int first_group, int end_group) {
  memset(by_distance, 0, (size_t)((keys + kBlock - 1) * kBlock) * sizeof(Scalar));
  for (int64_t key = 0; key < keys; ++key)
    for (int64_t lane = first_group * kGroup; lane < end_group * kGroup; ++lane)
      by_distance[(key - lane + kBlock - 1) * kBlock + lane] = by_key[key * kBlock + lane];
}

/* sums [width][64] += the table's rows, transposed, times by_distance. */
template <class Scalar>
void combine_distances(const DistanceRows &rows, const Scalar *table, int64_t row_stride, int64_t width,
                       const Scalar *by_distance, Scalar *sums) {
  const Product<Scalar> product{1, row_stride, kBlock, kBlock, rows.count, nullptr};
  multiply<PlainCore<Scalar>, kAdd, false>(product, table + rows.table_row * row_stride, width,
                                           by_distance + rows.tile_row * kBlock, kBlock / Simd<Scalar>::width, sums);
}
