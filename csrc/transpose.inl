/* transpose.inl: rows to tiles of 64 lanes, and back. */

#if defined(REGARD_AVX512)
#define REGARD_HAS_SQUARES 1
constexpr int kSquare = 16; /* rows and columns transposed in registers */
typedef __m512i SquareRow;
REGARD_INLINE SquareRow load_some(const void *from, int numbers) {
  return _mm512_maskz_loadu_epi32((__mmask16)((1u << numbers) - 1), from);
}
REGARD_INLINE void store_some(void *to, int numbers, SquareRow row) {
  _mm512_mask_storeu_epi32(to, (__mmask16)((1u << numbers) - 1), row);
}
REGARD_INLINE void store_whole(void *to, SquareRow row) { _mm512_storeu_si512(to, row); }

/* 16 x 16 numbers of 32 bits: rows to columns. Changes `a`. */
REGARD_INLINE void transpose(SquareRow a[16], SquareRow out[16]) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    out[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    out[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    out[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
  }
}
#elif defined(REGARD_AVX2)
#define REGARD_HAS_SQUARES 1
constexpr int kSquare = 8;
typedef __m256i SquareRow;
REGARD_INLINE SquareRow first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
REGARD_INLINE SquareRow load_some(const void *from, int numbers) {
  if (numbers == kSquare) return _mm256_loadu_si256((const __m256i *)from);
  return _mm256_maskload_epi32((const int *)from, first_lanes(numbers));
}
REGARD_INLINE void store_whole(void *to, SquareRow row) { _mm256_storeu_si256((__m256i *)to, row); }
REGARD_INLINE void store_some(void *to, int numbers, SquareRow row) {
  if (numbers == kSquare) return store_whole(to, row); /* masked stores take many times as long */
  _mm256_maskstore_epi32((int *)to, first_lanes(numbers), row);
}

/* 8 x 8 numbers of 32 bits: rows to columns. Changes `a`. */
REGARD_INLINE void transpose(SquareRow a[8], SquareRow out[8]) {
  __m256i b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
    out[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
  }
}
#endif

/* `count` <= 64 rows of `width` units to a tile [width][64]. Lanes past count, in groups that have a row, become 0;
 * `row_bytes`, since a row of bfloat16 pairs may begin anywhere. */
template <class Unit>
void rows_to_tile(const void *from, int64_t row_bytes, int64_t count, int64_t width, Unit *tile) {
  const char *bytes = (const char *)from;
  const int64_t lanes = (count + kGroup - 1) / kGroup * kGroup;
#if defined(REGARD_HAS_SQUARES)
  if (sizeof(Unit) == 4) {
    for (int64_t row = 0; row < lanes; row += kSquare)
      for (int64_t i = 0; i < width; i += kSquare) {
        const int columns = width - i < kSquare ? (int)(width - i) : kSquare;
        SquareRow in[kSquare], out[kSquare];
#pragma GCC unroll 16
        for (int r = 0; r < kSquare; ++r)
          in[r] = row + r < count ? load_some(bytes + (row + r) * row_bytes + i * 4, columns) : SquareRow{};
        transpose(in, out);
        for (int c = 0; c < columns; ++c) store_whole(tile + (i + c) * kBlock + row, out[c]);
      }
    return;
  }
#endif
  for (int64_t lane = 0; lane < lanes; ++lane)
    for (int64_t i = 0; i < width; ++i) {
      Unit unit = 0;
      if (lane < count) memcpy(&unit, bytes + lane * row_bytes + i * (int64_t)sizeof(Unit), sizeof unit);
      tile[i * kBlock + lane] = unit;
    }
}

/* A tile [width][64] to `count` rows [width] of the working type. */
template <class Scalar>
void tile_to_rows(const Scalar *tile, int64_t count, int64_t width, Scalar *rows, int64_t row_stride) {
#if defined(REGARD_HAS_SQUARES)
  if (sizeof(Scalar) == 4) {
    for (int64_t i = 0; i < width; i += kSquare)
      for (int64_t row = 0; row < count; row += kSquare) {
        const int columns = width - i < kSquare ? (int)(width - i) : kSquare;
        const int wanted = count - row < kSquare ? (int)(count - row) : kSquare;
        SquareRow in[kSquare], out[kSquare];
#pragma GCC unroll 16
        for (int c = 0; c < kSquare; ++c)
          in[c] = c < columns ? load_some(tile + (i + c) * kBlock + row, kSquare) : SquareRow{};
        transpose(in, out);
        for (int r = 0; r < wanted; ++r) store_some(rows + (row + r) * row_stride + i, columns, out[r]);
      }
    return;
  }
#endif
  for (int64_t row = 0; row < count; ++row)
    for (int64_t i = 0; i < width; ++i) rows[row * row_stride + i] = tile[i * kBlock + row];
}
