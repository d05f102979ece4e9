/* matrix_product.inl: C = A B, and a bias for each column, of any size: what a linear map and its gradients are made of.
 *
 * A task owns a tile of C. The steps of the sum go by chunks: of each chunk 64 columns of B are packed into a panel that
 * stays near, and all rows of the tile are multiplied with it. Chunks are added in their order and their length is
 * fixed, so that a number of C does not depend on how many threads there are, or on how C was cut.
 *
 * On registers alone this runs at 96 % of the peak; what was lost on the way there was waiting for memory. So every few
 * rows ask for what comes next: the rows of A and C behind them, and the panel after this one.
 */

/* A rectangle of memory that is asked for line by line, before it is read. */
struct Ahead {
  const char *row = nullptr;
  int64_t rows = 0, stride = 0, bytes = 0, at = 0;

  template <class Scalar>
  Ahead(const Scalar *from, int64_t count, int64_t row_stride, int64_t width)
      : row((const char *)from),
        rows(width > 0 ? count : 0),
        stride(row_stride * (int64_t)sizeof(Scalar)),
        bytes(width * (int64_t)sizeof(Scalar)) {}

  int64_t lines() const { return rows * ((bytes + 63) / 64); }

  void ask(int64_t lines) {
    for (; lines > 0 && rows > 0; --lines) {
      __builtin_prefetch(row + at, 0, 2);
      at += 64;
      if (at < bytes) continue;
      at = 0;
      row += stride;
      --rows;
    }
  }
};

template <class Scalar>
struct MatrixProduct {
  static constexpr int64_t chunk = 256;                         /* steps */
  static constexpr int64_t most_rows = 384, most_columns = 384; /* of a tile: its part of A fits the second cache */
  static constexpr int64_t strip = block_rows(kMostColumns);    /* rows between two looks ahead */
  static constexpr int width = Simd<Scalar>::width;
  typedef PlainCore<Scalar> Core;

  const regard_product &p;
  int64_t tile_rows = most_rows, tile_columns = most_columns, row_tiles = 0, column_tiles = 0;
  int status = REGARD_OK;

  /* What a task has of its own. */
  struct Tile {
    int64_t row, rows, column, columns;
    int64_t step, steps; /* the chunk at hand */
    Scalar *panel;       /* [chunk][64] of B */
    Scalar *left;        /* [chunk][tile_rows] of A, where it is packed */
    Scalar *edge;        /* [tile_rows][64] of C, where its columns do not fill vectors */
  };

  const Scalar *a_at(int64_t row, int64_t step) const { return (const Scalar *)p.a + row * p.a_row + step * p.a_step; }
  const Scalar *b_at(int64_t step, int64_t column) const {
    return (const Scalar *)p.b + step * p.b_step + column * p.b_column;
  }
  Scalar *c_at(int64_t row, int64_t column) const { return (Scalar *)p.c + row * p.c_row + column; }

  /* A's steps lie apart and its rows side by side: read as it is, every step would be on another page. */
  bool packs_left() const { return p.a_row == 1 && p.a_step != 1; }

  int run() {
    if (p.rows <= 0 || p.columns <= 0) return REGARD_OK;
    cut();
    regard::for_each_task(p.threads, row_tiles * column_tiles, run_task, this);
    return status;
  }

  /* Tiles of equal size that leave no thread waiting for the last ones, and are no smaller than that asks for: what is
   * read for a tile goes by its edges, and takes about as long as to compute twelve more rows and columns. */
  void cut() {
    const int64_t threads = p.threads > 1 ? p.threads : 1;
    double least_cost = INFINITY;
    for (int64_t most = most_rows; most >= 32; most -= 32)
      for (int64_t widest = most_columns; widest >= kBlock; widest -= kBlock) {
        const int64_t rows = equal_parts(p.rows, most, 16), columns = equal_parts(p.columns, widest, kBlock);
        const int64_t down = parts(p.rows, rows), across = parts(p.columns, columns);
        const int64_t idle = (threads - down * across % threads) % threads; /* at the last tiles */
        const double area = (double)(down * across + idle) * (double)(rows * columns);
        const double cost = area * (1 + 12.0 / (double)rows + 12.0 / (double)columns);
        if (cost >= least_cost) continue;
        least_cost = cost;
        tile_rows = rows, tile_columns = columns, row_tiles = down, column_tiles = across;
      }
  }
  static int64_t parts(int64_t length, int64_t part) { return (length + part - 1) / part; }
  static int64_t equal_parts(int64_t length, int64_t most, int64_t unit) {
    return parts(parts(length, parts(length, most)), unit) * unit;
  }

  static void run_task(void *self, int64_t task) { ((MatrixProduct *)self)->tile(task); }

  int64_t lay_out(Tile *t, char *memory) const {
    char *cursor = memory;
    t->panel = (Scalar *)take_aligned(&cursor, chunk * kBlock * (int64_t)sizeof(Scalar));
    t->left = (Scalar *)take_aligned(&cursor, packs_left() ? chunk * tile_rows * (int64_t)sizeof(Scalar) : 0);
    t->edge = (Scalar *)take_aligned(&cursor, p.columns % width ? tile_rows * kBlock * (int64_t)sizeof(Scalar) : 0);
    return cursor - memory;
  }

  void tile(int64_t task) {
    Tile t;
    char *memory = (char *)regard::thread_scratch((size_t)lay_out(&t, nullptr));
    if (!memory) {
      __atomic_store_n(&status, REGARD_NO_MEMORY, __ATOMIC_RELAXED);
      return;
    }
    lay_out(&t, memory);
    t.row = task % row_tiles * tile_rows, t.column = task / row_tiles * tile_columns;
    t.rows = least(p.rows - t.row, tile_rows), t.columns = least(p.columns - t.column, tile_columns);
    t.step = 0;
    do { /* once without a step too: C is then the bias */
      t.steps = least(p.steps - t.step, chunk);
      if (packs_left()) pack_left(t);
      const int64_t after = t.step + t.steps; /* where the next chunk begins */
      const int64_t steps_after = least(p.steps - after, chunk);
      Ahead left_after(a_at(t.row, after), packs_left() ? steps_after : 0, p.a_step, t.rows);
      for (int64_t first = 0; first < t.columns; first += kBlock) {
        pack_panel(t, t.column + first);
        const bool is_last = first + kBlock >= t.columns;
        multiply_panel(t, t.column + first,
                       is_last ? panel_after(after, steps_after, t.column)
                               : panel_after(t.step, t.steps, t.column + first + kBlock),
                       &left_after);
      }
      t.step = after;
    } while (t.step < p.steps);
  }

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  Ahead panel_after(int64_t step, int64_t steps, int64_t column) const {
    const int64_t count = least(p.columns - column, kBlock);
    if (p.b_step == 1) return Ahead(b_at(step, column), count, p.b_column, steps);
    return Ahead(b_at(step, column), steps, p.b_step, p.b_column == 1 ? count : 0);
  }

  /* ----------------------------------------------------------------------------------------- packing */

  void pack_left(const Tile &t) const {
    for (int64_t i = 0; i < t.steps; ++i)
      memcpy(t.left + i * tile_rows, a_at(t.row, t.step + i), (size_t)t.rows * sizeof(Scalar));
  }

  /* The lanes past the last column that fill its vector hold zeros. */
  void pack_panel(const Tile &t, int64_t column) const {
    const Scalar *from = b_at(t.step, column);
    const int64_t count = least(p.columns - column, kBlock), lanes = (count + width - 1) / width * width;
    if (p.b_step == 1) return rows_to_tile(from, p.b_column * (int64_t)sizeof(Scalar), count, t.steps, bits(t.panel));
    Scalar *to = t.panel;
    for (int64_t i = 0; i < t.steps; ++i, to += kBlock, from += p.b_step) {
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

  /* ------------------------------------------------------------------------------------- multiplying */

  void multiply_panel(const Tile &t, int64_t column, Ahead panel_after, Ahead *left_after) const {
    const int64_t count = least(p.columns - column, kBlock);
    const bool is_edge = count % width != 0;
    Scalar *to = is_edge ? t.edge : c_at(t.row, column);
    const int64_t to_row = is_edge ? kBlock : p.c_row;
    if (is_edge && t.step > 0) copy_rows(c_at(t.row, column), p.c_row, t.rows, count, to, to_row);
    if (t.step == 0 && p.bias) copy_rows((const Scalar *)p.bias + column, 0, t.rows, count, to, to_row);

    const bool reads_left = packs_left(), starts = column == t.column;
    const Scalar *from = reads_left ? t.left : a_at(t.row, t.step);
    const Product<Scalar> product{
        reads_left ? 1 : p.a_row, reads_left ? tile_rows : p.a_step, kBlock, to_row, t.steps, nullptr};
    const int vectors = (int)((count + width - 1) / width);
    const int64_t strips = (t.rows + strip - 1) / strip, panels = (t.columns + kBlock - 1) / kBlock;
    const int64_t panel_lines = panel_after.lines() / strips + 1,
                  left_lines = left_after->lines() / (strips * panels) + 1;
    /* A is new to the cache while the first panel meets it. */
    Ahead rows_after(a_at(t.row + strip, t.step), starts && p.a_step == 1 ? t.rows - strip : 0, p.a_row, t.steps);
    Ahead sums_after(to + strip * to_row, t.rows - strip, to_row, count);
    const int64_t row_lines = strip * ((rows_after.bytes + 63) / 64),
                  sum_lines = strip * ((sums_after.bytes + 63) / 64);
    for (int64_t row = 0; row < t.rows; row += strip) {
      rows_after.ask(row_lines);
      sums_after.ask(sum_lines);
      panel_after.ask(panel_lines);
      left_after->ask(left_lines);
      multiply_strip(product, from + row * product.a_row, least(t.rows - row, strip), t.panel, vectors,
                     to + row * to_row, t.step == 0 && !p.bias);
    }
    if (is_edge) copy_rows(to, to_row, t.rows, count, c_at(t.row, column), p.c_row);
  }

  static void multiply_strip(const Product<Scalar> &product, const Scalar *a, int64_t rows, const Scalar *b,
                             int vectors, Scalar *c, bool begins) {
    if (product.a_step == 1) {
      if (begins) return multiply<Core, kStore, true>(product, a, rows, b, vectors, c);
      return multiply<Core, kAdd, true>(product, a, rows, b, vectors, c);
    }
    if (begins) return multiply<Core, kStore, false>(product, a, rows, b, vectors, c);
    return multiply<Core, kAdd, false>(product, a, rows, b, vectors, c);
  }

  static void copy_rows(const Scalar *from, int64_t from_row, int64_t rows, int64_t count, Scalar *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; ++i) memcpy(to + i * to_row, from + i * from_row, (size_t)count * sizeof(Scalar));
  }
};
