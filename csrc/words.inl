/* words.inl: a bool mask as words, one for each key of each block of 64 queries. */

struct PackMask {
  const regard_pairs &mask;
  int64_t heads, q_len, kv_len, blocks;
  uint64_t *words;

  static void run_task(void *self, int64_t task) { ((const PackMask *)self)->block(task); }

  /* Queries are read in rows of 64 keys: the bytes of a row become a word with a bit for each key, and 64 such
   * words are transposed. */
  void block(int64_t task) const {
    const int64_t first = task % blocks * kBlock, head = task / blocks % heads, batch = task / blocks / heads;
    const int64_t rows = q_len - first < kBlock ? q_len - first : kBlock;
    const uint8_t *from =
        (const uint8_t *)mask.data + batch * mask.batch_stride + head * mask.head_stride + first * mask.query_stride;
    uint64_t *to = words + task * kv_len;
    for (int64_t key = 0; key < kv_len; key += kBlock) {
      const int64_t count = kv_len - key < kBlock ? kv_len - key : kBlock;
      uint64_t square[kBlock];
      for (int64_t row = 0; row < kBlock; ++row)
        square[row] = row < rows ? bits_of(from + row * mask.query_stride + key * mask.key_stride, count) : 0;
      transpose_bits(square);
      memcpy(to + key, square, (size_t)count * sizeof(uint64_t));
    }
  }

  uint64_t bits_of(const uint8_t *bytes, int64_t count) const {
    uint64_t bits = 0;
    if (mask.key_stride == 1 && count == kBlock) {
#if defined(REGARD_AVX512)
      const __m512i all = _mm512_loadu_si512(bytes);
      return _mm512_test_epi8_mask(all, all);
#else
      for (int64_t i = 0; i < kBlock; i += 8) {
        uint64_t eight;
        memcpy(&eight, bytes + i, 8);
        eight |= eight >> 4; /* what crosses into a byte from its neighbour lands above bit 3 */
        eight &= 0x0f0f0f0f0f0f0f0full;
        eight |= eight >> 2;
        eight &= 0x0303030303030303ull;
        eight |= eight >> 1; /* now bit 0 of each byte says whether any was set */
        bits |= ((eight & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << i;
      }
      return bits;
#endif
    }
    for (int64_t i = 0; i < count; ++i) bits |= (uint64_t)(bytes[i * mask.key_stride] != 0) << i;
    return bits;
  }

  /* Bit j of word i to bit i of word j: squares of 32, 16, ... 1 change places. */
  static void transpose_bits(uint64_t square[kBlock]) {
    uint64_t mask = 0x00000000ffffffffull;
    for (int size = 32; size; size >>= 1, mask ^= mask << size)
      for (int row = 0; row < kBlock; row = ((row | size) + 1) & ~size) {
        const uint64_t swapped = ((square[row] >> size) ^ square[row | size]) & mask;
        square[row] ^= swapped << size;
        square[row | size] ^= swapped;
      }
  }
};
