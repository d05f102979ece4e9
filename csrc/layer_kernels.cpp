/* layer_kernels.cpp: what layers compute beside attention, compiled once for each instruction set as kernels.cpp is, and
 * under the same rules. A unit of its own: a change here leaves the attention kernels as they were compiled. */
#include "kernels.h"
#include "simd.h"
#include "threads.h"

#include <stdlib.h>

namespace {
#include "half_precision.inl"
#include "multiply.inl"
#include "pack.inl"
#include "transpose.inl"
#include "matrix_product.inl"
#include "causal_chunk.inl"
#include "causal_segments.inl"
#include "causal_forward.inl"
#include "causal_backward.inl"
#include "selective_scan.inl"

int multiply_matrices(const regard_product *p) {
  switch (p->dtype) {
    case REGARD_F32: return MatrixProduct<float>{*p}.run();
    case REGARD_F64: return MatrixProduct<double>{*p}.run();
    default: return REGARD_BAD_ARGUMENT;
  }
}
} // namespace

/* In the order of RegardLayerKernels. */
extern const RegardLayerKernels REGARD_OF_ISA(regard_layer_kernels_);
const RegardLayerKernels REGARD_OF_ISA(regard_layer_kernels_) = {
    multiply_matrices, causal_scan_forward, causal_scan_backward, selective_scan_forward, selective_scan_backward};
