/* kernels.cpp: compiled once for each instruction set. C headers only, and everything in an anonymous namespace: a
 * weak symbol could be shared between instruction sets by the linker. */
#include "kernels.h"
#include "simd.h"
#include "threads.h"

#include <stdlib.h>
#include <time.h>

namespace {
#include "half_precision.inl"
#include "multiply.inl"
#include "pack.inl"
#include "transpose.inl"
#include "visible.inl"
#include "distance.inl"
#include "scores.inl"
#include "attention_forward.inl"
#include "attention_decode.inl"
#include "backward_block.inl"
#include "backward_tile.inl"
#include "attention_backward.inl"
#include "observed_block.inl"
#include "attention_weights.inl"
#include "attention_observe.inl"
#include "words.inl"
#include "peak.inl"

#if defined(REGARD_HAS_PAIRS)
/* bfloat16 pairs carry products of queries, keys, weights and values; tables by distance are float. */
bool fits_pairs(const regard_problem &p) { return !p.distance_keys.data && !p.distance_values.data; }
bool fits_pairs_backward(const regard_problem &p) { return fits_pairs(p) && is_plain(p) && !p.drop_below; }
#endif

template <class Core, class Storage>
int forward_of(const regard_problem &p, const regard_forward_results &r) {
  if (fits_decode(p)) return Decode<Core, Storage>(p, r).run();
  return Forward<Core, Storage>(p, r).run();
}

int forward(const regard_problem *p, const regard_forward_results *r) {
  switch (p->dtype) {
    case REGARD_F32: return forward_of<PlainCore<float>, float>(*p, *r);
    case REGARD_BF16:
#if defined(REGARD_HAS_PAIRS)
      if (fits_pairs(*p)) return forward_of<PairCore, Bf16>(*p, *r);
#endif
      return forward_of<PlainCore<float>, Bf16>(*p, *r);
    case REGARD_F16: return forward_of<PlainCore<float>, Half>(*p, *r);
    case REGARD_F64: return forward_of<PlainCore<double>, double>(*p, *r);
    default: return REGARD_BAD_ARGUMENT;
  }
}

int backward(const regard_problem *p, const regard_backward_arguments *a) {
  switch (p->dtype) {
    case REGARD_F32: return Backward<PlainCore<float>, float>(*p, *a).run();
    case REGARD_BF16:
#if defined(REGARD_HAS_PAIRS)
      if (fits_pairs_backward(*p)) return Backward<PairCore, Bf16>(*p, *a).run();
#endif
      return Backward<PlainCore<float>, Bf16>(*p, *a).run();
    case REGARD_F16: return Backward<PlainCore<float>, Half>(*p, *a).run();
    case REGARD_F64: return Backward<PlainCore<double>, double>(*p, *a).run();
    default: return REGARD_BAD_ARGUMENT;
  }
}

int weights(const regard_problem *p, const regard_weights_arguments *a) {
  switch (p->dtype) {
    case REGARD_F32: return WeightTile<float>{*p, *a}.run();
    case REGARD_BF16: return WeightTile<Bf16>{*p, *a}.run();
    case REGARD_F16: return WeightTile<Half>{*p, *a}.run();
    case REGARD_F64: return WeightTile<double>{*p, *a}.run();
    default: return REGARD_BAD_ARGUMENT;
  }
}

int statistics(const regard_problem *p, const regard_statistics_results *r) {
  switch (p->dtype) {
    case REGARD_F32: return StatisticsPass<float>{*p, *r}.run();
    case REGARD_BF16: return StatisticsPass<Bf16>{*p, *r}.run();
    case REGARD_F16: return StatisticsPass<Half>{*p, *r}.run();
    case REGARD_F64: return StatisticsPass<double>{*p, *r}.run();
    default: return REGARD_BAD_ARGUMENT;
  }
}

int pack_mask(const regard_pairs *mask, int64_t batch, int64_t heads, int64_t q_len, int64_t kv_len, uint64_t *words,
              int32_t threads) {
  const int64_t blocks = (q_len + kBlock - 1) / kBlock;
  PackMask job{*mask, heads, q_len, kv_len, blocks, words};
  regard::for_each_task(threads, batch * heads * blocks, PackMask::run_task, &job);
  return REGARD_OK;
}

double fma_peak(int32_t dtype, int32_t threads, double seconds) {
  switch (dtype) {
#if defined(REGARD_HAS_PAIRS)
    case REGARD_BF16: return peak_of<PairCore>(threads, seconds);
#endif
    case REGARD_F64: return peak_of<PlainCore<double>>(threads, seconds);
    default: return peak_of<PlainCore<float>>(threads, seconds);
  }
}

int64_t splits(const regard_problem *p) { return backward_splits(*p); }
} // namespace

#define REGARD_TEXT_(a) #a
#define REGARD_TEXT(a) REGARD_TEXT_(a)
extern const RegardLayerKernels REGARD_OF_ISA(regard_layer_kernels_);
extern const RegardKernels REGARD_OF_ISA(regard_kernels_);
const RegardKernels REGARD_OF_ISA(regard_kernels_) = {REGARD_TEXT(REGARD_ISA),
                                                      forward,
                                                      backward,
                                                      splits,
                                                      weights,
                                                      statistics,
                                                      pack_mask,
                                                      fma_peak,
                                                      &REGARD_OF_ISA(regard_layer_kernels_)};
