/* simd.h: the vector vocabulary. One place that knows the instruction set; the kernels are written in its words.
 *
 * A vector type comes from the compiler's vector extension, so + - * / and comparisons are plain operators. What
 * the extension has no word for, or spells slowly, stands below with its intrinsic.
 */
#ifndef REGARD_SIMD_H
#define REGARD_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define REGARD_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define REGARD_AVX2 1
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define REGARD_INLINE inline __attribute__((always_inline))

namespace {

#if defined(REGARD_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(REGARD_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int32_t Ints32 __attribute__((vector_size(kVectorBytes)));
typedef int64_t Ints64 __attribute__((vector_size(kVectorBytes)));

/* What a scalar type's vectors are. `rows` x `columns` vectors of accumulators fit the registers of this
 * instruction set beside the operands they are made from. */
template <class Scalar>
struct Simd;

template <>
struct Simd<float> {
  typedef Floats Vector;
  typedef Ints32 Integers;
  typedef int32_t Integer;
  static constexpr int width = kVectorBytes / 4;
};

template <>
struct Simd<double> {
  typedef Doubles Vector;
  typedef Ints64 Integers;
  typedef int64_t Integer;
  static constexpr int width = kVectorBytes / 8;
};

template <class Scalar>
using VectorOf = typename Simd<Scalar>::Vector;

template <class Scalar>
REGARD_INLINE VectorOf<Scalar> load(const Scalar *from) {
  VectorOf<Scalar> vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

REGARD_INLINE void store(float *to, Floats vector) { memcpy(to, &vector, sizeof vector); }
REGARD_INLINE void store(double *to, Doubles vector) { memcpy(to, &vector, sizeof vector); }

REGARD_INLINE Floats broadcast(float x) { return x - Floats{}; }
REGARD_INLINE Doubles broadcast(double x) { return x - Doubles{}; }

/* a * b + c, rounded once where there is an instruction for it. By its intrinsic: left to the compiler the product may
 * be shared with another use, and rounded. */
#if defined(REGARD_AVX512)
REGARD_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
REGARD_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(REGARD_AVX2)
REGARD_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
REGARD_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
REGARD_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
REGARD_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
#else
template <class Vector>
REGARD_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
  return a * b + c;
}
#endif

/* The product rounded by itself: the compiler may not merge it with a sum. */
template <class Vector>
REGARD_INLINE Vector rounded_product(Vector a, Vector b) {
  Vector product = a * b;
#if defined(__x86_64__)
  __asm__("" : "+v"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#endif
  return product;
}

/* a * b - product, where product is their rounded_product: what rounding took. */
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true; /* multiply_add rounds once */
template <class Vector>
REGARD_INLINE Vector product_error(Vector a, Vector b, Vector product) {
  return multiply_add(a, b, -product);
}
#else
constexpr bool kFused = false;
/* Dekker 1971: with factors of half the digits every partial product is exact. */
REGARD_INLINE Floats upper_digits(Floats x) { return (Floats)((Ints32)x & (int32_t)0xfffff000); }
REGARD_INLINE Doubles upper_digits(Doubles x) { return (Doubles)((Ints64)x & (int64_t)0xfffffffff8000000); }
template <class Vector>
REGARD_INLINE Vector product_error(Vector a, Vector b, Vector product) {
  const Vector a_high = upper_digits(a), b_high = upper_digits(b), a_low = a - a_high, b_low = b - b_high;
  return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
}
#endif

/* The larger one; of NaN and a number the second. */
#if defined(REGARD_AVX512)
REGARD_INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
REGARD_INLINE Doubles larger(Doubles a, Doubles b) { return _mm512_max_pd(a, b); }
#elif defined(REGARD_AVX2)
REGARD_INLINE Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
REGARD_INLINE Doubles larger(Doubles a, Doubles b) { return _mm256_max_pd(a, b); }
#else
template <class Vector>
REGARD_INLINE Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}
#endif

/* The smaller one; of NaN and a number the second. */
#if defined(REGARD_AVX512)
REGARD_INLINE Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
#elif defined(REGARD_AVX2)
REGARD_INLINE Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
#else
REGARD_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
#endif

/* The sum of all lanes, always in the same order. */
#if defined(REGARD_AVX512)
REGARD_INLINE float sum_of_lanes(Floats vector) { return _mm512_reduce_add_ps(vector); }
REGARD_INLINE double sum_of_lanes(Doubles vector) { return _mm512_reduce_add_pd(vector); }
#else
template <class Vector>
REGARD_INLINE auto sum_of_lanes(Vector vector) -> decltype(vector[0] + vector[0]) {
  for (unsigned half = sizeof vector / sizeof vector[0] / 2; half; half /= 2)
    for (unsigned lane = 0; lane < half; ++lane) vector[lane] += vector[lane + half];
  return vector[0];
}
#endif

/* Lane i of the result is the sum of the lanes of vectors[i], of which there are as many as lanes. Changes `vectors`. */
#if defined(REGARD_AVX512)
REGARD_INLINE Floats sums_of_each(Floats *vectors) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const Floats a = vectors[2 * i], b = vectors[2 * i + 1];
    vectors[i] = (Floats)_mm512_unpacklo_ps(a, b) + (Floats)_mm512_unpackhi_ps(a, b);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = (__m512d)vectors[2 * i], b = (__m512d)vectors[2 * i + 1];
    vectors[i] = (Floats)_mm512_unpacklo_pd(a, b) + (Floats)_mm512_unpackhi_pd(a, b);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Floats a = vectors[2 * i], b = vectors[2 * i + 1];
    vectors[i] = (Floats)_mm512_shuffle_f32x4(a, b, 0x88) + (Floats)_mm512_shuffle_f32x4(a, b, 0xdd);
  }
  return (Floats)_mm512_shuffle_f32x4(vectors[0], vectors[1], 0x88) +
         (Floats)_mm512_shuffle_f32x4(vectors[0], vectors[1], 0xdd);
}
#endif
template <class Integers, class Vector>
REGARD_INLINE Vector sums_of_each(Vector *vectors, Integers even) {
  constexpr int lanes = (int)(sizeof(Vector) / sizeof(vectors[0][0]));
  for (int lane = 0; lane < lanes; ++lane) even[lane] = 2 * lane;
#pragma GCC unroll 4
  for (int left = lanes / 2; left; left /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < left; ++i)
      vectors[i] = __builtin_shuffle(vectors[2 * i], vectors[2 * i + 1], even) +
                   __builtin_shuffle(vectors[2 * i], vectors[2 * i + 1], even + 1);
  return vectors[0];
}
#if !defined(REGARD_AVX512)
REGARD_INLINE Floats sums_of_each(Floats *vectors) { return sums_of_each(vectors, Ints32{}); }
#endif
REGARD_INLINE Doubles sums_of_each(Doubles *vectors) { return sums_of_each(vectors, Ints64{}); }

/* A bit for each lane: is a > b there? */
#if defined(REGARD_AVX512)
REGARD_INLINE uint64_t lanes_above(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
REGARD_INLINE uint64_t lanes_above(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
#elif defined(REGARD_AVX2)
REGARD_INLINE uint64_t lanes_above(Floats a, Floats b) {
  return (uint64_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
REGARD_INLINE uint64_t lanes_above(Doubles a, Doubles b) {
  return (uint64_t)_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
}
#else
template <class Vector>
REGARD_INLINE uint64_t lanes_above(Vector a, Vector b) {
  const auto above = a > b; /* -1 where it is */
  uint64_t bits = 0;
  for (unsigned lane = 0; lane < sizeof a / sizeof a[0]; ++lane) bits |= (uint64_t)(above[lane] != 0) << lane;
  return bits;
}
#endif

/* The last lane first. */
template <class Vector, class Integers>
REGARD_INLINE Vector reversed(Vector vector, Integers order) {
  for (unsigned lane = 0; lane < sizeof order / sizeof order[0]; ++lane)
    order[lane] = (int)(sizeof order / sizeof order[0]) - 1 - (int)lane;
  return __builtin_shuffle(vector, order);
}
REGARD_INLINE Floats reversed(Floats vector) { return reversed(vector, Ints32{}); }
REGARD_INLINE Doubles reversed(Doubles vector) { return reversed(vector, Ints64{}); }

/* `vector` in the lanes whose bit of `word` is set, counted from bit `first`; `other` in the rest. */
#if defined(REGARD_AVX512)
REGARD_INLINE Floats where_bit(uint64_t word, int first, Floats vector, Floats other) {
  return _mm512_mask_mov_ps(other, (__mmask16)(word >> first), vector);
}
REGARD_INLINE Doubles where_bit(uint64_t word, int first, Doubles vector, Doubles other) {
  return _mm512_mask_mov_pd(other, (__mmask8)(word >> first), vector);
}
#else
template <class Integers>
REGARD_INLINE Integers lane_bits() {
  Integers bits;
  for (unsigned lane = 0; lane < sizeof bits / sizeof bits[0]; ++lane) bits[lane] = 1 << lane;
  return bits;
}
REGARD_INLINE Floats where_bit(uint64_t word, int first, Floats vector, Floats other) {
  const Ints32 bits = lane_bits<Ints32>();
  return ((int32_t)(word >> first) & bits) != 0 ? vector : other;
}
REGARD_INLINE Doubles where_bit(uint64_t word, int first, Doubles vector, Doubles other) {
  const Ints64 bits = lane_bits<Ints64>();
  return ((int64_t)(word >> first) & bits) != 0 ? vector : other;
}
#endif

/* 2 to the x - low. For |low| far below 1 only: `power_of_sum` takes any. NaN stays NaN; -inf gives 0; a result
 * below 2^-126 may be any other that small; a whole x is exact. Relative error before rounding: kDegree 6 2.0e-9, kDegree 4 2.9e-6, enough for a weight
 * that is rounded to bfloat16. The polynomials are minimax fits of 2^x on [0, 1) in relative error with 1 at 0, made
 * with Lawson's iteration. */
template <int kDegree>
REGARD_INLINE Floats exp2_fraction(Floats r) {
  Floats p;
  if (kDegree == 4) {
    p = multiply_add(broadcast(0.013426687242472951f), r, broadcast(0.0522424694301779f));
    p = multiply_add(p, r, broadcast(0.24128020701166436f));
    p = multiply_add(p, r, broadcast(0.6930448446127973f));
  } else {
    p = multiply_add(broadcast(0.000216129183378146f), r, broadcast(0.0012467845555602353f));
    p = multiply_add(p, r, broadcast(0.00967545165300804f));
    p = multiply_add(p, r, broadcast(0.055485280581442774f));
    p = multiply_add(p, r, broadcast(0.24022930555911892f));
    p = multiply_add(p, r, broadcast(0.6931470444429192f));
  }
  return multiply_add(p, r, broadcast(1.0f));
}

#if defined(REGARD_AVX512)
template <int kDegree>
REGARD_INLINE Floats power_of_two(Floats x, Floats low) {
  const Floats r = _mm512_reduce_ps(x, 0x09);                  /* x - floor(x); 0 for -inf */
  return _mm512_scalef_ps(exp2_fraction<kDegree>(r - low), x); /* times 2^floor(x) */
}
#else
template <int kDegree>
REGARD_INLINE Floats power_from(Floats lowest, Floats x, Floats low) {
  const Floats y = smaller(broadcast(127.99999f), larger(lowest, x));
#if defined(REGARD_AVX2)
  const Floats down = _mm256_floor_ps(y);
#else
  Floats down = __builtin_convertvector(__builtin_convertvector(y, Ints32), Floats);
  down = down > y ? down - 1.0f : down;
#endif
  const Floats p = exp2_fraction<kDegree>(y - down - low);
  return (Floats)((Ints32)p + (__builtin_convertvector(down, Ints32) << 23)); /* NaN: 0 is added to its bits */
}
template <int kDegree>
REGARD_INLINE Floats power_of_two(Floats x, Floats low) {
  const Floats lowest = broadcast(-126.0f);
  return x < lowest ? Floats{} : power_from<kDegree>(lowest, x, low);
}
/* The bits of 1, and -127 added to the exponent among them, are the bits of 0. */
template <int kDegree>
REGARD_INLINE Floats power_of_two(Floats x) {
  return power_from<kDegree>(broadcast(-127.0f), x, Floats{});
}
#endif

template <int kDegree>
REGARD_INLINE Doubles power_of_two(Doubles x, Doubles low) {
  Doubles result;
  for (unsigned lane = 0; lane < sizeof x / sizeof x[0]; ++lane) result[lane] = exp2(x[lane] - low[lane]);
  return result;
}

template <int kDegree, class Vector>
REGARD_INLINE Vector power_of_two(Vector x) {
  return power_of_two<kDegree>(x, Vector{});
}

/* tanh. Near 0 an odd minimax polynomial (1.2e-7 relative), where 1 - 2 / (e^2x + 1) would cancel. */
REGARD_INLINE Floats hyperbolic_tangent(Floats x) {
  const Floats bounded = x > 10.0f ? broadcast(10.0f) : (x < -10.0f ? broadcast(-10.0f) : x);
  const Floats power = power_of_two<6>(bounded * 2.8853900817779268f); /* 2 / ln 2 */
  const Floats far = 1.0f - 2.0f / (power + 1.0f);
  const Floats square = x * x;
  Floats p = multiply_add(broadcast(-0.005704946691673347f), square, broadcast(0.020639052755818815f));
  p = multiply_add(p, square, broadcast(-0.05373970503811569f));
  p = multiply_add(p, square, broadcast(0.1333144208463597f));
  p = multiply_add(p, square, broadcast(-0.33333281938107395f));
  const Floats near = multiply_add(p * square, x, x);
  return square < 0.390625f ? near : (x == x ? far : x);
}
REGARD_INLINE Doubles hyperbolic_tangent(Doubles x) {
  Doubles result;
  for (unsigned lane = 0; lane < sizeof x / sizeof x[0]; ++lane) result[lane] = tanh(x[lane]);
  return result;
}

/* Ask for `bytes` from `from` to be brought near; harmless past the end of an array. */
REGARD_INLINE void prefetch(const void *from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)from + at, 0, 2);
}

} // namespace
#endif
