/* matrix_product.inl: C = A B, and a bias for each column, of any size: what a linear map and its gradients are made of.
 *
 * A task owns a tile of C. The steps of the sum go by chunks: of each chunk 64 columns of B are packed into a panel that
 * stays in the nearest cache, and all rows of the tile are multiplied with it. Chunks are added in their order and their
 * length is fixed, so that a number of C does not depend on how many threads there are, or on how C was cut.
 */

template <class Scalar>
struct MatrixProduct {
  static constexpr int64_t chunk = 128; /* steps: 64 columns of them are 32 KiB of floats */
  static constexpr int64_t most_rows = 256,
                           most_columns = 256; /* of a tile: A's part of it stays in the second cache */
  static constexpr int width = Simd<Scalar>::width;
  typedef PlainCore<Scalar> Core;

  const regard_product &p;
  int64_t tile_rows = most_rows, tile_columns = most_columns, row_tiles = 0, column_tiles = 0;
  int status = REGARD_OK;

  struct Scratch {
    Scalar *panel; /* [chunk][64] of B */
    Scalar *left;  /* [chunk][tile_rows] of A, where it is packed */
    Scalar *edge;  /* [tile_rows][64] of C, where its columns do not fill vectors */
  };

  /* A's steps lie apart and its rows side by side: read as it is, every step would be on another page. */
  bool packs_left() const { return p.a_row == 1 && p.a_step != 1; }

  int run() {
    if (p.rows <= 0 || p.columns <= 0) return REGARD_OK;
    cut();
    regard::for_each_task(p.threads, row_tiles * column_tiles, run_task, this);
    return status;
  }

  /* Smaller tiles where there would be too few for the threads. */
  void cut() {
    const int64_t wanted = p.threads > 1 ? 3 * (int64_t)p.threads : 1;
    for (;;) {
      row_tiles = (p.rows + tile_rows - 1) / tile_rows;
      column_tiles = (p.columns + tile_columns - 1) / tile_columns;
      if (row_tiles * column_tiles >= wanted || (tile_rows <= 64 && tile_columns <= kBlock)) break;
      if (tile_rows > 64)
        tile_rows /= 2;
      else
        tile_columns /= 2;
    }
  }

  static void run_task(void *self, int64_t task) { ((MatrixProduct *)self)->tile(task); }

  int64_t lay_out(Scratch *s, char *memory) const {
    char *cursor = memory;
    s->panel = (Scalar *)take_aligned(&cursor, chunk * kBlock * (int64_t)sizeof(Scalar));
    s->left = (Scalar *)take_aligned(&cursor, packs_left() ? chunk * tile_rows * (int64_t)sizeof(Scalar) : 0);
    s->edge = (Scalar *)take_aligned(&cursor, p.columns % width ? tile_rows * kBlock * (int64_t)sizeof(Scalar) : 0);
    return cursor - memory;
  }

  void tile(int64_t task) {
    Scratch s;
    char *memory = (char *)regard::thread_scratch((size_t)lay_out(&s, nullptr));
    if (!memory) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    lay_out(&s, memory);
    const int64_t row = task % row_tiles * tile_rows, column = task / row_tiles * tile_columns;
    const int64_t rows = p.rows - row < tile_rows ? p.rows - row : tile_rows;
    const int64_t columns = p.columns - column < tile_columns ? p.columns - column : tile_columns;
    int64_t step = 0;
    do { /* once without a step too: C is then the bias */
      const int64_t steps = p.steps - step < chunk ? p.steps - step : chunk;
      if (packs_left()) pack_left(s.left, row, rows, step, steps);
      for (int64_t first = 0; first < columns; first += kBlock) {
        const int64_t count = columns - first < kBlock ? columns - first : kBlock;
        pack_panel(s.panel, step, steps, column + first, count);
        multiply_panel(s, row, rows, column + first, count, step, steps);
      }
      step += chunk;
    } while (step < p.steps);
  }

  void pack_left(Scalar *to, int64_t row, int64_t rows, int64_t step, int64_t steps) const {
    const Scalar *from = (const Scalar *)p.a + row + step * p.a_step;
    for (int64_t i = 0; i < steps; ++i) memcpy(to + i * tile_rows, from + i * p.a_step, (size_t)rows * sizeof(Scalar));
  }

  /* The lanes past `count` that fill its last vector hold zeros. */
  void pack_panel(Scalar *to, int64_t step, int64_t steps, int64_t column, int64_t count) const {
    const Scalar *from = (const Scalar *)p.b + step * p.b_step + column * p.b_column;
    if (p.b_step == 1) return rows_to_tile(from, p.b_column * (int64_t)sizeof(Scalar), count, steps, bits(to));
    const int64_t lanes = (count + width - 1) / width * width;
    for (int64_t i = 0; i < steps; ++i, to += kBlock, from += p.b_step) {
      if (p.b_column == 1 && count == kBlock) {
        memcpy(to, from, kBlock * sizeof(Scalar));
        continue;
      }
      for (int64_t lane = 0; lane < count; ++lane) to[lane] = from[lane * p.b_column];
      for (int64_t lane = count; lane < lanes; ++lane) to[lane] = 0;
    }
  }
  static uint32_t *bits(float *tile) { return (uint32_t *)tile; }
  static uint64_t *bits(double *tile) { return (uint64_t *)tile; }

  void multiply_panel(const Scratch &s, int64_t row, int64_t rows, int64_t column, int64_t count, int64_t step,
                      int64_t steps) const {
    const bool is_edge = count % width != 0;
    Scalar *to = is_edge ? s.edge : (Scalar *)p.c + row * p.c_row + column;
    const int64_t to_row = is_edge ? kBlock : p.c_row;
    const int vectors = (int)((count + width - 1) / width);
    if (is_edge && step > 0) copy_rows((const Scalar *)p.c + row * p.c_row + column, p.c_row, rows, count, to, to_row);
    if (step == 0 && p.bias)
      for (int64_t i = 0; i < rows; ++i)
        memcpy(to + i * to_row, (const Scalar *)p.bias + column, (size_t)count * sizeof(Scalar));
    const bool is_first = step == 0 && !p.bias;
    if (packs_left()) {
      const Product<Scalar> product{1, tile_rows, kBlock, to_row, steps, nullptr};
      multiply_with<false>(product, s.left, rows, s.panel, vectors, to, is_first);
    } else {
      const Product<Scalar> product{p.a_row, p.a_step, kBlock, to_row, steps, nullptr};
      const Scalar *from = (const Scalar *)p.a + row * p.a_row + step * p.a_step;
      if (p.a_step == 1)
        multiply_with<true>(product, from, rows, s.panel, vectors, to, is_first);
      else
        multiply_with<false>(product, from, rows, s.panel, vectors, to, is_first);
    }
    if (is_edge) copy_rows(to, to_row, rows, count, (Scalar *)p.c + row * p.c_row + column, p.c_row);
  }

  template <bool kUnitStep>
  static void multiply_with(const Product<Scalar> &product, const Scalar *a, int64_t rows, const Scalar *b, int vectors,
                            Scalar *c, bool is_first) {
    if (is_first)
      multiply<Core, kStore, kUnitStep>(product, a, rows, b, vectors, c);
    else
      multiply<Core, kAdd, kUnitStep>(product, a, rows, b, vectors, c);
  }

  static void copy_rows(const Scalar *from, int64_t from_row, int64_t rows, int64_t count, Scalar *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; ++i) memcpy(to + i * to_row, from + i * from_row, (size_t)count * sizeof(Scalar));
  }
};
