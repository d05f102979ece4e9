/* test_kernels.cpp: the exported functions, without Python, against plain loops in double precision.
 *
 *   test_kernels                  every instruction set of this machine, one thread and several
 *   test_kernels --plant NAME     with a fault put in between: has to fail
 *   test_kernels --share N        one of N cases, by chance
 *
 * The rooms: test_numbers.h numbers in memory, test_case.h sizes, masks and options, test_loops.cpp the plain loops,
 * test_compare.h what is close enough, test_attention.cpp forward and backward, test_observe.cpp weights and
 * statistics, test_extremes.cpp what is not finite. Which cases there are is said here. test_scans.cpp and
 * test_selective_scan.cpp, sums along the tokens, and test_product.cpp say theirs.
 */
#include <cstdio>
#include <cstdlib>

#include "test_compare.h"

namespace {

/* Everything that a case can be asked. */
void check(Case *given) {
  given->build();
  const Case &c = *given;
  Random random{c.seed + 5};
  Rows above(c.dtype, c.batch, c.heads, c.q_len, c.value_dim, c.layout);
  Rows lse_above(working(c.dtype), c.batch, c.heads, c.q_len, 1, 0);
  Gradients g{above.fill(&random), lse_above.fill(&random)};
  if (!(c.options & kLseGradient)) g.lse.clear();
  const Expected e = expect(c, g);
  for_each_isa(c, [&](int32_t isa) {
    const int32_t threads = (c.seed + (uint64_t)isa) % 2 ? 1 : 3;
    const Forwarded forwarded = check_forward(c, e, threads);
    check_backward(c, e, forwarded, above, lse_above, threads);
    check_weights(c, e, forwarded);
    check_statistics(c, e);
  });
}

void check_all(int64_t share) {
  const int64_t lengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 300}, widths[] = {1, 3, 16, 64, 80, 257};
  const int masks[] = {
      0, kBand, kIntervals, kWords, kTiles, kBand | kIntervals, kBand | kWords, kIntervals | kWords, kBand | kTiles};
  uint64_t number = 0;
  Random random{1};
  const auto take = [&](Case c) {
    if (is_taken(c.seed, share)) check(&c);
  };
  for (int dtype = 0; dtype < 4; ++dtype) {
    /* Every length of the queries with every kind of mask. */
    for (int mask : masks)
      for (int64_t length : lengths)
        take(sizes(dtype, mask, 0, length, lengths[random.below(10)], widths[random.below(5)], widths[random.below(5)],
                   ++number));
    for (int64_t width : widths) /* every width, the largest too */
      take(sizes(dtype, kBand, kLseGradient, 65, 130, width, widths[random.below(6)], ++number));
    for (int option = 1; option < kAllOptions; option *= 2)
      take(sizes(dtype, masks[random.below(9)], option, 65, 79, 16, 16, ++number));
    for (int i = 0; i < 60; ++i) {
      const int64_t q_len = 1 + random.below(140), kv_len = 1 + random.below(140);
      const int options = (int)random.below(kAllOptions + 1), mask = masks[random.below(9)];
      Case c = sizes(dtype, mask, options, q_len, kv_len, 1 + random.below(70), 1 + random.below(70), ++number);
      if (i % 4 == 0) c.key_period = 5; /* scores that are equal */
      take(std::move(c));
    }
  }
}

/* Few queries and many keys: threads cut the keys, and most masks show only some of the cuts. */
void check_decoding(int64_t share) {
  const int64_t lengths[] = {64, 65, 127, 200, 511, 512, 513, 600, 1024, 1025, 1300};
  const int64_t widths[] = {16, 33, 64, 80, 128, 257};
  const int masks[] = {0, kBand, kIntervals, kBand | kIntervals};
  uint64_t number = 0;
  Random random{2};
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int i = 0; i < 44; ++i) {
      const bool many = i % 4 == 3; /* queries, and then few heads */
      const int64_t q_len = many ? 5 + random.below(12) : 1 + random.below(4);
      Case c = sizes(dtype, masks[random.below(4)], random.below(3) ? 0 : kSink, q_len, lengths[i % 11],
                     widths[random.below(6)], widths[random.below(6)], 2000 + ++number);
      c.kv_heads = 1 + random.below(many ? 1 : 3);
      c.heads = c.kv_heads * (1 + random.below(many ? 2 : 6));
      c.narrow = random.below(2);
      c.most_intervals = 1;
      c.key_period = random.below(3) ? 0 : 40;
      const auto work = [&] { return c.batch * c.heads * c.q_len * c.kv_len * (c.head_dim + c.value_dim); };
      if (work() > 1500000) c.batch = 1;
      if (work() > 1500000) c.heads = 2, c.kv_heads = 1;
      if (is_taken(c.seed, share)) check(&c);
    }
}

/* Scores around 10000 and -10000, and more keys or queries than a tile holds of them. */
void check_large(int64_t share) {
  const int masks[] = {0, kBand, kIntervals, kWords, kTiles};
  const int options[] = {0, kBias, kSink, kLseGradient, kDistanceBias};
  uint64_t number = 0;
  Random random{4};
  for (int dtype = 0; dtype < 4; ++dtype)
    for (int i = 0; i < 20; ++i) {
      const int64_t q_len = i % 5 == 0 ? 700 : i % 5 == 1 ? 1 + random.below(3) : 1 + random.below(100);
      const int64_t kv_len = i % 5 == 0 ? 40 : i % 5 < 3 ? 700 : 1 + random.below(300);
      Case c = sizes(dtype, masks[random.below(5)], options[random.below(5)], q_len, kv_len, 16, 1 + random.below(20),
                     4000 + ++number);
      if (i % 2) c.large = dtype == REGARD_F16 ? 640 : 10240; /* gradients of keys have to fit the type too */
      if (q_len + kv_len > 700) c.batch = 1;
      if (is_taken(c.seed, share)) check(&c);
    }
}

/* Bool masks to words: every length, laid out in both orders, broadcast and not. */
void check_packing() {
  const int64_t lengths[] = {1, 15, 64, 65, 130};
  Random random{3};
  for (int64_t q_len : lengths)
    for (int64_t kv_len : lengths)
      for (int form = 0; form < 4; ++form) {
        Case c = sizes(REGARD_F32, kWords, form, q_len, kv_len, 1, 1, 2);
        const int64_t batch = 2, heads = 3, planes = form & 1 ? 1 : batch * heads;
        std::vector<uint8_t> mask((size_t)(planes * q_len * kv_len));
        for (uint8_t &byte : mask) byte = (uint8_t)(random.below(2) * (1 + random.below(255)));
        regard_pairs view{mask.data(), heads * q_len * kv_len, q_len * kv_len, kv_len, 1};
        if (form & 1) view.batch_stride = view.head_stride = 0;
        if (form & 2) view.query_stride = 1, view.key_stride = q_len;
        std::vector<uint64_t> words((size_t)(batch * heads * c.blocks() * kv_len), 0x5a5a);
        if (regard_pack_mask(&view, batch, heads, q_len, kv_len, words.data(), 1 + form) != REGARD_OK)
          fail(c, "pack_mask", "another status than 0");
        if (is_planted("word")) words.back() ^= 1;
        bool right = true;
        for (int64_t plane = 0; plane < batch * heads; ++plane)
          for (int64_t i = 0; i < q_len; ++i)
            for (int64_t j = 0; j < kv_len; ++j) {
              const uint8_t byte = mask[(size_t)(plane / heads * view.batch_stride + plane % heads * view.head_stride +
                                                 i * view.query_stride + j * view.key_stride)];
              const uint64_t word = words[(size_t)((plane * c.blocks() + i / 64) * kv_len + j)];
              right &= (word >> i % 64 & 1) == (byte != 0);
            }
        ++checks;
        if (!right) fail(c, "pack_mask", "a bit that is not the mask's");
      }
}

/* What the library says of itself. */
void check_library() {
  Case c = sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1);
  c.build();
  if (regard_abi_version() != REGARD_ABI_VERSION) fail(c, "regard_abi_version", "another than the header's");
  if (regard_struct_size("regard_problem") != (int64_t)sizeof(regard_problem)) fail(c, "regard_struct_size", "wrong");
  if (regard_struct_size("no such") != -1 || regard_struct_size(nullptr) != -1)
    fail(c, "regard_struct_size", "knows all");
  if (regard_set_isa("no such") != REGARD_BAD_ARGUMENT) fail(c, "regard_set_isa", "takes any name");
  if (!regard_available_isa(0) || regard_available_isa(-1) || regard_available_isa(99))
    fail(c, "regard_available_isa", "wrong");
  if (strcmp(regard_isa(), regard_available_isa(0)) != 0 && !getenv("REGARD_ISA"))
    fail(c, "regard_isa", "not the best");
  const regard_forward_results r{};
  c.problem.dtype = 4;
  if (regard_forward(&c.problem, &r) != REGARD_BAD_ARGUMENT) fail(c, "regard_forward", "takes any dtype");
}

/* How fast the machine is: a number, and none where nobody measures. */
void check_peak() {
  Case c = sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1);
  for_each_isa(c, [&](int32_t) {
    for (c.dtype = 0; c.dtype < 4; ++c.dtype)
      for (int32_t threads = -1; threads <= 3; ++threads) {
        double rate = regard_fma_peak(c.dtype, threads, 1e-4);
        if (is_planted("peak")) rate = -rate;
        ++checks;
        if (threads < 1 ? rate != 0 : !(std::isfinite(rate) && rate > 0))
          fail(c, "fma_peak", "not a positive number, or not 0");
      }
  });
}

} // namespace

int main(int count, char **arguments) {
  int64_t share = 1;
  for (int i = 1; i < count; ++i) {
    if (strcmp(arguments[i], "--share") == 0 && i + 1 < count)
      share = std::max(1, atoi(arguments[++i]));
    else if (strcmp(arguments[i], "--plant") == 0 && i + 1 < count)
      planted = arguments[++i];
    else
      return fprintf(stderr, "usage: test_kernels [--share N] [--plant NAME]\n"), 2;
  }
  check_library();
  for_each_isa(sizes(REGARD_F32, 0, 0, 1, 1, 1, 1, 1), [](int32_t) { check_packing(); });
  check_peak();
  check_all(share);
  check_decoding(share);
  check_large(share);
  check_extremes(share);
  check_scans(share);
  check_selective_scans(share);
  check_products(share);
  printf("%lld passed, %lld failed\n", (long long)(checks > failures ? checks - failures : 0), (long long)failures);
  return failures || !checks ? 1 : 0;
}
