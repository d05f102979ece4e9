/* test_numbers.h: numbers of the library's types in memory, as the tests write and read them.
 *
 * Every buffer ends where its last number does, so that a sanitizer sees one read too many, and the gaps between rows
 * must stay as they were. */
#ifndef REGARD_TEST_NUMBERS_H
#define REGARD_TEST_NUMBERS_H

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "regard.h"

typedef std::vector<double> Numbers;

struct Random {
  uint64_t state;
  uint64_t bits() { /* splitmix64 */
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t end) { return (int64_t)(bits() % (uint64_t)end); }
  double number() { return (double)(below(129) - 64) / 32; } /* within 2, seven bits: exact in every type */
};

inline int64_t bytes_of(int dtype) { return dtype == REGARD_F64 ? 8 : dtype == REGARD_F32 ? 4 : 2; }
inline int working(int dtype) { return dtype == REGARD_F64 ? REGARD_F64 : REGARD_F32; }

/* Half the distance of neighbouring numbers around 1. */
inline double rounding(int dtype) {
  const int bits[4] = {24, 8, 11, 53};
  return std::ldexp(1.0, -bits[dtype]);
}

inline void write(void *to, int dtype, double x) {
  const float single = (float)x;
  uint32_t word;
  memcpy(&word, &single, 4);
  uint16_t half = (uint16_t)(word >> 16);
  if (dtype == REGARD_F16 && !std::isfinite(x))
    half = (uint16_t)((half & 0x8000) | (x == x ? 0x7c00 : 0x7e00));
  else if (dtype == REGARD_F16)
    half = x == 0 ? 0 : (uint16_t)((half & 0x8000) | (((word & 0x7fffffff) - 0x38000000) >> 13));
  if (dtype == REGARD_F64)
    memcpy(to, &x, 8);
  else if (dtype == REGARD_F32)
    memcpy(to, &single, 4);
  else
    memcpy(to, &half, 2);
}

inline double read(const void *from, int dtype) {
  if (dtype == REGARD_F64) {
    double x;
    memcpy(&x, from, 8);
    return x;
  }
  uint32_t word = 0;
  uint16_t half = 0;
  memcpy(dtype == REGARD_F32 ? (void *)&word : &half, from, (size_t)bytes_of(dtype));
  if (dtype == REGARD_F16) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double size = exponent == 31  ? (mantissa ? NAN : INFINITY)
                        : exponent == 0 ? std::ldexp(mantissa, -24)
                                        : std::ldexp(mantissa + 1024, exponent - 25);
    return half & 0x8000 ? -size : size;
  }
  if (dtype == REGARD_BF16) word = (uint32_t)half << 16;
  float single;
  memcpy(&single, &word, 4);
  return single;
}

/* A strided (batch, heads, rows, width) of some type; what lies between its numbers has a pattern of its own. */
struct Rows {
  int dtype = 0;
  int64_t batch = 0, heads = 0, count = 0, width = 0, batch_stride = 0, head_stride = 0, row_stride = 0;
  std::unique_ptr<char[]> memory;
  int64_t bytes = 0;

  Rows() {}
  Rows(int type, int64_t b, int64_t h, int64_t n, int64_t w, int layout)
      : dtype(type), batch(b), heads(h), count(n), width(w) {
    const int64_t gap = layout == 0 ? 0 : layout == 1 ? 3 : 8;
    if (layout == 2) { /* (batch, rows, heads, width): a projection that was split into heads */
      head_stride = width + gap;
      row_stride = heads * head_stride;
      batch_stride = count * row_stride;
    } else {
      row_stride = width + gap;
      head_stride = count * row_stride;
      batch_stride = heads * head_stride;
    }
    bytes = (place(b - 1, h - 1, n - 1, w - 1) + 1) * bytes_of(type);
    memory.reset(new char[(size_t)bytes]);
    memset(memory.get(), 0x5a, (size_t)bytes);
  }
  int64_t place(int64_t b, int64_t h, int64_t row, int64_t i) const {
    return b * batch_stride + h * head_stride + row * row_stride + i;
  }
  void *at(int64_t place) const { return memory.get() + place * bytes_of(dtype); }
  regard_rows view() const { return {memory.get(), batch_stride, head_stride, row_stride}; }

  Numbers fill(Random *random) {
    Numbers numbers;
    each([&](int64_t where) {
      numbers.push_back(random ? random->number() : 0);
      write(at(where), dtype, numbers.back());
    });
    return numbers;
  }
  Numbers numbers() const {
    Numbers found;
    each([&](int64_t where) { found.push_back(read(at(where), dtype)); });
    return found;
  }
  /* Other numbers in their place, in the order of `numbers`. */
  void put(const Numbers &numbers) {
    size_t i = 0;
    each([&](int64_t where) { write(at(where), dtype, numbers[i++]); });
  }
  bool all_finite() const {
    bool finite = true;
    each([&](int64_t where) { finite = finite && std::isfinite(read(at(where), dtype)); });
    return finite;
  }
  bool gaps_are_whole() const {
    std::vector<char> used((size_t)bytes, 0);
    each([&](int64_t where) { memset(used.data() + where * bytes_of(dtype), 1, (size_t)bytes_of(dtype)); });
    for (int64_t i = 0; i < bytes; ++i)
      if (!used[(size_t)i] && memory[(size_t)i] != 0x5a) return false;
    return true;
  }
  template <class Take>
  void each(Take take) const {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t row = 0; row < count; ++row)
          for (int64_t i = 0; i < width; ++i) take(place(b, h, row, i));
  }
};

#endif
