// The inner loop of GPTQ, for one row of a weight. No LibTorch here; see codebook_kernels.h.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_KERNELS_H_

#include <cstdint>

#include "worker/engine/quantize/codebook_kernels.h"

namespace qpruner::engine {

// Rounds `count` weights one after the other, each time correcting those still to come:
//   q_i = round(w_i); e_i = (w_i - q_i) / u_ii; w_j -= e_i u_ij for j > i,
// with u the upper Cholesky factor of the inverse Hessian, [count, count] with rows `stride` apart.
// On return `codes` holds the codes, `errors` the e_i; `w` is used up.

// Integers: `scale` and `zero_point` of each weight's group.
void RoundRowToIntegers(float* w, int64_t count, const float* u, int64_t stride, const float* scale,
                        const uint8_t* zero_point, int bits, uint8_t* codes, float* errors);

// Tables: `absmax` of each weight's block. The code is that of the nearest value.
void RoundRowToCodebook(float* w, int64_t count, const float* u, int64_t stride,
                        const float* absmax, Codebook codebook, uint8_t* codes, float* errors);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_KERNELS_H_
