/* kernels.h: what one compilation of the kernels offers. */
#ifndef REGARD_KERNELS_H
#define REGARD_KERNELS_H

#include "regard.h"

/* Of layer_kernels.cpp: what layers compute beside attention. */
struct RegardLayerKernels {
  int (*multiply)(const regard_product *);
  int (*causal_scan_forward)(const regard_causal_scan *, const regard_causal_scan_results *);
  int (*causal_scan_backward)(const regard_causal_scan *, const regard_causal_scan_gradients *);
  int (*selective_scan_forward)(const regard_selective_scan *, const regard_selective_scan_results *);
  int (*selective_scan_backward)(const regard_selective_scan *, const regard_selective_scan_gradients *);
};

/* Of kernels.cpp. */
struct RegardKernels {
  const char *name;
  int (*forward)(const regard_problem *, const regard_forward_results *);
  int (*backward)(const regard_problem *, const regard_backward_arguments *);
  int64_t (*backward_splits)(const regard_problem *);
  int (*weights)(const regard_problem *, const regard_weights_arguments *);
  int (*statistics)(const regard_problem *, const regard_statistics_results *);
  int (*pack_mask)(const regard_pairs *, int64_t, int64_t, int64_t, int64_t, uint64_t *, int32_t);
  double (*fma_peak)(int32_t, int32_t, double);
  const RegardLayerKernels *layers;
};

/* A name of this compilation: `start` and its instruction set. */
#define REGARD_JOIN_(a, b) a##b
#define REGARD_JOIN(a, b) REGARD_JOIN_(a, b)
#define REGARD_OF_ISA(start) REGARD_JOIN(start, REGARD_ISA)
#endif
