/* dispatch.cpp: which compilation of the kernels runs, and the functions that the library exports.
 *
 * The kernels are compiled once for each instruction set; the first of the list below that this machine has is taken
 * when something is first asked for. REGARD_ISA in the environment, or regard_set_isa, takes another one.
 */
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "kernels.h"

#if defined(REGARD_HAS_AVX512_BF16)
extern const RegardKernels regard_kernels_avx512_bf16;
#endif
#if defined(REGARD_HAS_AVX512)
extern const RegardKernels regard_kernels_avx512;
#endif
#if defined(REGARD_HAS_AVX2)
extern const RegardKernels regard_kernels_avx2;
#endif
#if defined(REGARD_HAS_BASELINE)
extern const RegardKernels regard_kernels_baseline;
#endif
#if defined(REGARD_HAS_NEON)
extern const RegardKernels regard_kernels_neon;
#endif

namespace {

/* __builtin_cpu_supports also asks whether the operating system keeps the wide registers. */
#if defined(REGARD_HAS_AVX2) || defined(REGARD_HAS_AVX512) || defined(REGARD_HAS_AVX512_BF16)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif
#if defined(REGARD_HAS_AVX512) || defined(REGARD_HAS_AVX512_BF16)
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(REGARD_HAS_AVX512_BF16)
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#if defined(REGARD_HAS_BASELINE) || defined(REGARD_HAS_NEON)
bool always() { return true; }
#endif

struct Variant {
  const RegardKernels *kernels;
  bool (*is_here)();
};

const Variant variants[] = {
/* best first */
#if defined(REGARD_HAS_AVX512_BF16)
    {&regard_kernels_avx512_bf16, has_avx512_bf16},
#endif
#if defined(REGARD_HAS_AVX512)
    {&regard_kernels_avx512, has_avx512},
#endif
#if defined(REGARD_HAS_AVX2)
    {&regard_kernels_avx2, has_avx2},
#endif
#if defined(REGARD_HAS_BASELINE)
    {&regard_kernels_baseline, always},
#endif
#if defined(REGARD_HAS_NEON)
    {&regard_kernels_neon, always},
#endif
};

const RegardKernels *available(int32_t index) {
  for (const Variant &variant : variants)
    if (variant.is_here() && index-- == 0) return variant.kernels;
  return nullptr;
}

/* The best for NULL; NULL for a name that this machine or build has not. */
const RegardKernels *find(const char *name) {
  if (!name) return available(0);
  for (const Variant &variant : variants)
    if (strcmp(variant.kernels->name, name) == 0) return variant.is_here() ? variant.kernels : nullptr;
  return nullptr;
}

std::atomic<const RegardKernels *> chosen{nullptr};
std::mutex first_choice;
std::atomic<int64_t> forward_calls{0}, backward_calls{0};
char request_error[160] = ""; /* written before the first choice is published, never after */

/* What the environment asks for. A wrong name must not go unseen, but a library has nobody to tell: the best one is
 * taken, and the complaint waits for whoever asks. */
const RegardKernels *choose_first() {
  std::lock_guard<std::mutex> lock(first_choice);
  if (const RegardKernels *found = chosen.load(std::memory_order_acquire)) return found;
  const char *name = getenv("REGARD_ISA");
  if (name && !*name) name = nullptr;
  const RegardKernels *wanted = find(name);
  if (!wanted) {
    snprintf(request_error, sizeof request_error, "%.100s", name);
    wanted = find(nullptr);
  }
  chosen.store(wanted, std::memory_order_release);
  return wanted;
}

const RegardKernels *kernels() {
  const RegardKernels *found = chosen.load(std::memory_order_acquire);
  return found ? found : choose_first();
}

} // namespace

/* ------------------------------------------------------------------------- functions of the kernels */

/* A function that is added to the kernels needs one line here: its type, name, parameters and arguments. */
#define FORWARD(type, function, parameters, arguments) \
  type regard_##function parameters { return kernels()->function arguments; }

/* These two are counted. */
int regard_forward(const regard_problem *problem, const regard_forward_results *results) {
  forward_calls.fetch_add(1, std::memory_order_relaxed);
  return kernels()->forward(problem, results);
}
int regard_backward(const regard_problem *problem, const regard_backward_arguments *arguments) {
  backward_calls.fetch_add(1, std::memory_order_relaxed);
  return kernels()->backward(problem, arguments);
}
void regard_calls(int64_t *forward, int64_t *backward) {
  *forward = forward_calls.load(std::memory_order_relaxed);
  *backward = backward_calls.load(std::memory_order_relaxed);
}
FORWARD(int64_t, backward_splits, (const regard_problem *problem), (problem))
FORWARD(int, weights, (const regard_problem *problem, const regard_weights_arguments *arguments), (problem, arguments))
FORWARD(int, statistics, (const regard_problem *problem, const regard_statistics_results *results), (problem, results))
FORWARD(int, pack_mask,
        (const regard_pairs *mask, int64_t batch, int64_t heads, int64_t q_len, int64_t kv_len, uint64_t *words,
         int32_t threads),
        (mask, batch, heads, q_len, kv_len, words, threads))
FORWARD(double, fma_peak, (int32_t dtype, int32_t threads, double seconds), (dtype, threads, seconds))

/* The same for a function of the layers' kernels. */
#define FORWARD_LAYER(type, function, parameters, arguments) \
  type regard_##function parameters { return kernels()->layers->function arguments; }

FORWARD_LAYER(int, multiply, (const regard_product *product), (product))
FORWARD_LAYER(int, causal_scan_forward, (const regard_causal_scan *scan, const regard_causal_scan_results *results),
              (scan, results))
FORWARD_LAYER(int, causal_scan_backward,
              (const regard_causal_scan *scan, const regard_causal_scan_gradients *gradients), (scan, gradients))
FORWARD_LAYER(int, selective_scan_forward,
              (const regard_selective_scan *scan, const regard_selective_scan_results *results), (scan, results))
FORWARD_LAYER(int, selective_scan_backward,
              (const regard_selective_scan *scan, const regard_selective_scan_gradients *gradients), (scan, gradients))

/* ------------------------------------------------------------------------- functions of the library */

const char *regard_isa(void) { return kernels()->name; }

int regard_set_isa(const char *name) {
  kernels(); /* so that a choice made here is the later one */
  const RegardKernels *wanted = find(name);
  if (!wanted) return REGARD_BAD_ARGUMENT;
  chosen.store(wanted, std::memory_order_release);
  return REGARD_OK;
}

const char *regard_available_isa(int32_t index) {
  const RegardKernels *found = index < 0 ? nullptr : available(index);
  return found ? found->name : nullptr;
}

const char *regard_isa_request_error(void) {
  kernels();
  return *request_error ? request_error : nullptr;
}

int32_t regard_abi_version(void) { return REGARD_ABI_VERSION; }

int64_t regard_struct_size(const char *name) {
#define SIZE_OF(type) \
  if (name && strcmp(name, #type) == 0) return (int64_t)sizeof(type)
  SIZE_OF(regard_rows);
  SIZE_OF(regard_pairs);
  SIZE_OF(regard_mask);
  SIZE_OF(regard_table);
  SIZE_OF(regard_problem);
  SIZE_OF(regard_forward_results);
  SIZE_OF(regard_backward_arguments);
  SIZE_OF(regard_weights_arguments);
  SIZE_OF(regard_statistics_results);
  SIZE_OF(regard_product);
  SIZE_OF(regard_causal_scan);
  SIZE_OF(regard_causal_scan_results);
  SIZE_OF(regard_causal_scan_gradients);
  SIZE_OF(regard_selective_scan);
  SIZE_OF(regard_selective_scan_results);
  SIZE_OF(regard_selective_scan_gradients);
  return -1;
}
