/* test_product.cpp: matrix products of any size and strides, against plain loops. The numbers have seven bits, so that
 * every sum here is exact and has to be found to the last bit, in whatever order it is added. */
#include "test_compare.h"

namespace {

/* A matrix in memory that ends where its last number does. */
struct Matrix {
  int dtype;
  int64_t rows, columns, row_stride, column_stride;
  std::vector<char> memory;

  enum Layout { kRowMajor, kColumnMajor, kApart, kOneRow };
  Matrix(int type, int64_t r, int64_t c, Layout layout, int64_t gap) : dtype(type), rows(r), columns(c) {
    row_stride = layout == kColumnMajor ? 1 : layout == kOneRow ? 0 : (layout == kApart ? 2 * c : c) + gap;
    column_stride = layout == kColumnMajor ? r + gap : layout == kApart ? 2 : 1;
    const int64_t last = r && c ? (r - 1) * row_stride + (c - 1) * column_stride : -1;
    memory.assign((size_t)((last + 1) * bytes_of(type)), 0x5a);
  }
  void *at(int64_t row, int64_t column) {
    return memory.data() + (row * row_stride + column * column_stride) * bytes_of(dtype);
  }
  double number(int64_t row, int64_t column) { return read(at(row, column), dtype); }
  void fill(Random *random) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column) write(at(row, column), dtype, random->number());
  }
  bool gaps_are_whole() {
    std::vector<char> used(memory.size(), 0);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column)
        memset(used.data() + ((char *)at(row, column) - memory.data()), 1, (size_t)bytes_of(dtype));
    for (size_t i = 0; i < used.size(); ++i)
      if (!used[i] && memory[i] != 0x5a) return false;
    return true;
  }
};

/* Sizes as a case of attention names them: rows are queries, columns keys, steps elements of a head. */
struct ProductCase {
  Case c;
  Matrix a, b, bias;
  bool has_bias;

  regard_product handed_over(Matrix *to, int32_t threads) {
    regard_product p{a.dtype,           threads,         a.rows,          b.columns,
                     a.columns,         a.memory.data(), a.row_stride,    a.column_stride,
                     b.memory.data(),   b.row_stride,    b.column_stride, has_bias ? bias.memory.data() : nullptr,
                     to->memory.data(), to->row_stride};
    if (is_planted("addend")) p.bias = nullptr;
    if (is_planted("factor")) p.a_row = 0;
    if (is_planted("summand") && p.steps > 1) --p.steps;
    if (is_planted("edge") && p.columns > 1) --p.columns;
    return p;
  }

  void check() {
    Matrix first(a.dtype, a.rows, b.columns, Matrix::kRowMajor, c.seed % 2 ? 0 : 5);
    for (int32_t threads : {1, 3}) {
      Matrix found(a.dtype, a.rows, b.columns, Matrix::kRowMajor, c.seed % 2 ? 0 : 5);
      const regard_product p = handed_over(&found, threads);
      ++checks;
      if (regard_multiply(&p) != REGARD_OK) return fail(c, "multiply", "another status than 0");
      if (is_planted("margin") && found.row_stride > b.columns && a.rows > 1)
        found.memory[(size_t)(b.columns * bytes_of(a.dtype))] ^= 1;
      if (is_planted("shared") && threads > 1 && !found.memory.empty()) found.memory[0] ^= 1;
      if (!found.gaps_are_whole()) fail(c, "multiply", "wrote between the rows");
      if (threads == 1) {
        compare_with_loops(found);
        first = found;
      } else if (found.memory != first.memory) {
        fail(c, "multiply", "another number of threads gives another result");
      }
    }
  }

  void compare_with_loops(Matrix &found) {
    for (int64_t row = 0; row < a.rows; ++row)
      for (int64_t column = 0; column < b.columns; ++column) {
        double sum = has_bias ? bias.number(0, column) : 0;
        for (int64_t step = 0; step < a.columns; ++step) sum += a.number(row, step) * b.number(step, column);
        const double got = found.number(row, column);
        if (got == sum || (got != got && sum != sum)) continue;
        char line[120];
        snprintf(line, sizeof line, "row %d, column %d is %.9g, not %.9g", (int)row, (int)column, got, sum);
        return fail(c, "multiply", line);
      }
  }
};

ProductCase product_case(int dtype, int64_t rows, int64_t columns, int64_t steps, uint64_t seed) {
  Random random{seed};
  const auto layout = [&](int64_t count) { return (Matrix::Layout)random.below(count); };
  const int64_t gap = random.below(2) * 3;
  ProductCase made{sizes(dtype, 0, 0, rows, columns, steps, 1, seed), Matrix(dtype, rows, steps, layout(4), gap),
                   Matrix(dtype, steps, columns, layout(4), gap), Matrix(dtype, 1, columns, Matrix::kRowMajor, 0),
                   random.below(2) != 0};
  made.a.fill(&random), made.b.fill(&random), made.bias.fill(&random);
  const double bad[] = {NAN, INFINITY, -INFINITY};
  Matrix &spoiled = random.below(2) ? made.a : made.b;
  if (random.below(3) == 0 && rows * columns * steps > 0) /* it reaches the sums that it is part of, and no other */
    write(spoiled.at(random.below(spoiled.rows), random.below(spoiled.columns)), dtype, bad[random.below(3)]);
  return made;
}

} // namespace

void check_products(int64_t share) {
  const int64_t lengths[] = {1, 2, 3, 5, 15, 16, 17, 33, 63, 64, 65, 100, 130};
  const int64_t step_counts[] = {1, 2, 17, 64, 255, 256, 257, 515};
  for_each_isa(sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1), [&](int32_t isa) {
    uint64_t number = 6000 + 1000 * (uint64_t)isa;
    Random random{number};
    for (int dtype : {REGARD_F32, REGARD_F64}) {
      const auto take = [&](int64_t rows, int64_t columns, int64_t steps) {
        if (is_taken(++number, share)) product_case(dtype, rows, columns, steps, number).check();
      };
      for (int64_t rows : lengths)
        for (int64_t columns : lengths) take(rows, columns, step_counts[random.below(8)]);
      for (int64_t steps : step_counts) take(70, 66, steps);
      for (int64_t none = 0; none < 3; ++none) take(none == 0 ? 0 : 9, none == 1 ? 0 : 20, none == 2 ? 0 : 7);
      take(300, 280, 40); /* several tiles */
      take(257, 70, 300);
    }
  });
  Case c = sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1);
  regard_product p{};
  p.dtype = REGARD_BF16;
  ++checks;
  if (regard_multiply(&p) != REGARD_BAD_ARGUMENT) fail(c, "multiply", "takes any dtype");
}
