/* pack.inl: between the caller's rows and the kernels' tiles.
 *
 * A block is 64 queries; a tile holds one number for each of them in every row: [row][64]. */

constexpr int kBlock = 64; /* queries in a block, one bit each in a word */
constexpr int kGroup = 16; /* queries skipped or computed together */
constexpr int kGroups = kBlock / kGroup;

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

REGARD_INLINE float to_working(float x) { return x; }
REGARD_INLINE double to_working(double x) { return x; }
REGARD_INLINE float to_working(Bf16 x) { return float_from_bf16(x.bits); }
REGARD_INLINE float to_working(Half x) { return float_from_f16(x.bits); }
REGARD_INLINE void from_working(float x, float *to) { *to = x; }
REGARD_INLINE void from_working(double x, double *to) { *to = x; }
REGARD_INLINE void from_working(float x, Bf16 *to) { to->bits = bf16_from_float(x); }
REGARD_INLINE void from_working(float x, Half *to) { to->bits = f16_from_float(x); }

template <class Storage>
struct WorkingOf {
  typedef float type;
};
template <>
struct WorkingOf<double> {
  typedef double type;
};

/* `count` neighbouring numbers to the working type. */
template <class Storage>
void widen(const Storage *from, int64_t count, typename WorkingOf<Storage>::type *to) {
  int64_t i = 0;
#if defined(REGARD_AVX512)
  if (sizeof(Storage) == 2 && (const void *)from != (const void *)to)
    for (; i + 16 <= count; i += 16) {
      const __m256i bits = _mm256_loadu_si256((const __m256i *)(from + i));
      const bool is_half = __is_same(Storage, Half);
      const __m512 wide =
          is_half ? _mm512_cvtph_ps(bits) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
      _mm512_storeu_ps((float *)(to + i), wide);
    }
#elif defined(REGARD_AVX2) && defined(__F16C__)
  if (sizeof(Storage) == 2)
    for (; i + 8 <= count; i += 8) {
      const __m128i bits = _mm_loadu_si128((const __m128i *)(from + i));
      const bool is_half = __is_same(Storage, Half);
      const __m256 wide =
          is_half ? _mm256_cvtph_ps(bits) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
      _mm256_storeu_ps((float *)(to + i), wide);
    }
#endif
  for (; i < count; ++i) to[i] = to_working(from[i]);
}

/* The largest number that does not round to infinity in the caller's type. */
REGARD_INLINE float most_of(const Half *) { return 65519.996f; }
REGARD_INLINE float most_of(const Bf16 *) { return 3.3961773e38f; }
REGARD_INLINE float most_of(const float *) { return __FLT_MAX__; }
REGARD_INLINE double most_of(const double *) { return __DBL_MAX__; }

/* `count` neighbouring numbers to the caller's type. Adds 0 to `probe`, or NaN when one that is written is not finite. */
template <class Storage, class Scalar>
void narrow(const Scalar *from, int64_t count, Storage *to, Scalar *probe) {
  constexpr int width = Simd<Scalar>::width;
  const Scalar most = most_of(to);
  const auto never = broadcast((Scalar)NAN);
  VectorOf<Scalar> sums{}; /* of many lanes: one sum would wait for itself at every number */
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const VectorOf<Scalar> some = load(from + i);
    sums = sums + (some > most ? never : some < -most ? never : some * 0);
  }
  Scalar sum = sum_of_lanes(sums);
  for (; i < count; ++i) sum += from[i] > most || from[i] < -most ? (Scalar)NAN : from[i] * 0;
  for (i = 0; i < count; ++i) from_working(from[i], to + i);
  *probe += sum;
}

template <class Storage>
REGARD_INLINE Storage *row_of(const regard_rows &rows, int64_t batch, int64_t head, int64_t row) {
  return (Storage *)rows.data + batch * rows.batch_stride + head * rows.head_stride + row * rows.row_stride;
}

/* The next `bytes` of scratch memory, aligned. With a cursor that began at NULL this only measures. */
REGARD_INLINE char *take_aligned(char **cursor, int64_t bytes) {
  char *taken = *cursor;
  *cursor += (bytes + 63) & ~(int64_t)63;
  return taken;
}

/* Rows to units: what a step of `Core` reads, padded with zeros to whole units. */
template <class Core, class Storage>
struct Units;

template <class S, class Storage>
struct Units<PlainCore<S>, Storage> {
  static constexpr bool is_raw = __is_same(S, Storage); /* the caller's rows are units already */
  static void pack_row(const Storage *from, int64_t width, S *to) { widen(from, width, to); }
  /* Rows `count` (1 in a unit here) of `width` columns, one unit to each column of each step. */
  static void pack_steps(const Storage *from, int64_t row_stride, int64_t count, int64_t width, S *to,
                         int64_t to_stride) {
    for (int64_t row = 0; row < count; ++row) widen(from + row * row_stride, width, to + row * to_stride);
  }
};

#if defined(REGARD_HAS_PAIRS)
template <>
struct Units<PairCore, Bf16> {
  static constexpr bool is_raw = true;
  static void pack_row(const Bf16 *from, int64_t width, uint32_t *to) {
    to[(width - 1) / 2] = 0;
    memcpy(to, from, (size_t)width * 2);
  }
  /* Row 2i in the lower half and row 2i + 1, or zeros, in the upper one. */
  static void pack_steps(const Bf16 *from, int64_t row_stride, int64_t count, int64_t width, uint32_t *to,
                         int64_t to_stride) {
    for (int64_t row = 0; row < count; row += 2) {
      const Bf16 *lower = from + row * row_stride, *upper = lower + row_stride;
      const bool both = row + 1 < count;
      int64_t i = 0;
      for (; i + 16 <= width; i += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(lower + i)));
        __m512i high = _mm512_setzero_si512();
        if (both) high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(upper + i))), 16);
        _mm512_storeu_si512(to + i, _mm512_or_si512(low, high));
      }
      for (; i < width; ++i) to[i] = lower[i].bits | (both ? (uint32_t)upper[i].bits << 16 : 0);
      to += to_stride;
    }
  }
};
#endif

#if defined(REGARD_HAS_PAIRS)
/* Each number of `even` in the lower half of a unit and that of `odd` in the upper one, as bfloat16. */
REGARD_INLINE void store_pairs(uint32_t *to, Floats even, Floats odd) {
  /* cvtne2ps puts `even` into the lower 16 numbers and `odd` into the upper 16; then they are interleaved. */
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_loadu_si512(order), both));
}

/* 16 numbers as bfloat16, two in each unit. */
REGARD_INLINE void store_halves(uint32_t *to, Floats numbers) {
  _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(numbers));
}
#endif
