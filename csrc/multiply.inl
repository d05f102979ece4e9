/* multiply.inl: the one matrix product of this library, C (+)= A B on registers.
 *
 * The columns of C are vector lanes; its rows and the steps of the sum are broadcast from A wherever A lies, so
 * A is never packed. `Core` says what a step is: one multiply-add, or the sum of two bfloat16 products.
 */

template <class S>
struct PlainCore {
  typedef S Scalar;
  typedef S Unit; /* what one step reads of A and B */
  typedef VectorOf<S> Vector;
  typedef VectorOf<S> Operand;
  static constexpr int step_width = 1; /* elements in a unit */
  static constexpr int precision = 6;  /* of the exponential */
  static REGARD_INLINE Operand spread(const Unit *from) { return broadcast(*from); }
  static REGARD_INLINE Operand operand(const Unit *from) { return load(from); }
  static REGARD_INLINE Vector step(Vector sum, Operand a, Operand b) { return multiply_add(a, b, sum); }
};

#if defined(REGARD_AVX512) && defined(__AVX512BF16__)
#define REGARD_HAS_PAIRS 1
/* Two neighbouring bfloat16 numbers in 32 bits. */
struct PairCore {
  typedef float Scalar;
  typedef uint32_t Unit;
  typedef Floats Vector;
  typedef __m512bh Operand;
  static constexpr int step_width = 2;
  static constexpr int precision = 4;
  static REGARD_INLINE Operand spread(const Unit *from) {
    int32_t pair;
    memcpy(&pair, from, sizeof pair); /* rows of bfloat16 may begin anywhere */
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static REGARD_INLINE Operand operand(const Unit *from) { return (__m512bh)_mm512_loadu_si512(from); }
  static REGARD_INLINE Vector step(Vector sum, Operand a, Operand b) { return _mm512_dpbf16_ps(sum, a, b); }
};
#endif

/* What becomes of the sums. */
enum Ending {
  kStore,       /* C = sum */
  kStoreAndMax, /* and extra[column] = max(extra[column], sum) */
  kScaleAndAdd, /* C = C * extra[column] + sum */
  kAdd,         /* C = C + sum */
};

template <class Scalar>
struct Product {
  int64_t a_row, a_step; /* strides of A, in units */
  int64_t b_step;        /* stride of B's steps, in units */
  int64_t c_row;
  int64_t steps;
  Scalar *extra;
};

template <class Core, int R, int C, Ending kEnding, bool kUnitStep>
REGARD_INLINE void multiply_block(const Product<typename Core::Scalar> &p, const typename Core::Unit *a,
                                  const typename Core::Unit *b, typename Core::Scalar *c,
                                  typename Core::Scalar *extra) {
  typedef typename Core::Scalar Scalar;
  typedef typename Core::Vector Vector;
  constexpr int width = Simd<Scalar>::width;
  const int64_t a_step = kUnitStep ? 1 : p.a_step, a_row = p.a_row, b_step = p.b_step;
  Vector sums[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < C; ++v) sums[r][v] = Vector{};
#pragma GCC unroll 2
  for (int64_t step = 0; step < p.steps; ++step) {
    typename Core::Operand right[C];
#pragma GCC unroll 16
    for (int v = 0; v < C; ++v) right[v] = Core::operand(b + step * b_step + v * width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Core::Operand left = Core::spread(a + r * a_row + step * a_step);
#pragma GCC unroll 16
      for (int v = 0; v < C; ++v) sums[r][v] = Core::step(sums[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < C; ++v) {
    Vector highest = kEnding == kStoreAndMax || kEnding == kScaleAndAdd ? load(extra + v * width) : Vector{};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Scalar *to = c + r * p.c_row + v * width;
      if (kEnding == kStoreAndMax) highest = larger(highest, sums[r][v]);
      if (kEnding == kScaleAndAdd) sums[r][v] = multiply_add(load(to), highest, sums[r][v]);
      if (kEnding == kAdd) sums[r][v] = load(to) + sums[r][v];
      store(to, sums[r][v]);
    }
    if (kEnding == kStoreAndMax) store(extra + v * width, highest);
  }
}

/* R x C accumulators that fit the registers, for each C. */
#if defined(REGARD_AVX512) || defined(__aarch64__)
constexpr int kMostColumns = 4;
constexpr int block_rows(int columns) { return columns == 4 ? 4 : columns == 3 ? 6 : 8; }
#else
constexpr int kMostColumns = 2;
constexpr int block_rows(int columns) { return columns == 2 ? 6 : 8; }
#endif

template <class Core, int R, int C, Ending kEnding, bool kUnitStep>
__attribute__((noinline)) void multiply_rows(const Product<typename Core::Scalar> &p, const typename Core::Unit *a,
                                             int64_t rows, const typename Core::Unit *b, typename Core::Scalar *c,
                                             typename Core::Scalar *extra) {
  int64_t row = 0;
  for (; row + R <= rows; row += R)
    multiply_block<Core, R, C, kEnding, kUnitStep>(p, a + row * p.a_row, b, c + row * p.c_row, extra);
  if (R > 4)
    for (; row + 4 <= rows; row += 4)
      multiply_block<Core, 4, C, kEnding, kUnitStep>(p, a + row * p.a_row, b, c + row * p.c_row, extra);
  if (R > 2)
    for (; row + 2 <= rows; row += 2)
      multiply_block<Core, 2, C, kEnding, kUnitStep>(p, a + row * p.a_row, b, c + row * p.c_row, extra);
  for (; row < rows; ++row)
    multiply_block<Core, 1, C, kEnding, kUnitStep>(p, a + row * p.a_row, b, c + row * p.c_row, extra);
}

/* rows x (columns vectors) of C. */
template <class Core, Ending kEnding, bool kUnitStep>
void multiply(const Product<typename Core::Scalar> &p, const typename Core::Unit *a, int64_t rows,
              const typename Core::Unit *b, int columns, typename Core::Scalar *c) {
  constexpr int width = Simd<typename Core::Scalar>::width;
  typename Core::Scalar *extra = p.extra;
  while (columns > 0) {
    const int taken = columns < kMostColumns ? columns : kMostColumns;
    if (taken == 4) multiply_rows<Core, block_rows(4), 4, kEnding, kUnitStep>(p, a, rows, b, c, extra);
    if (taken == 3) multiply_rows<Core, block_rows(3), 3, kEnding, kUnitStep>(p, a, rows, b, c, extra);
    if (taken == 2) multiply_rows<Core, block_rows(2), 2, kEnding, kUnitStep>(p, a, rows, b, c, extra);
    if (taken == 1) multiply_rows<Core, block_rows(1), 1, kEnding, kUnitStep>(p, a, rows, b, c, extra);
    b += taken * width;
    c += taken * width;
    extra += extra ? taken * width : 0;
    columns -= taken;
  }
}
