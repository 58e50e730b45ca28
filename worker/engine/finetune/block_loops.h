// The inner loops of block_kernels.h and adapter_dropout.h over one row of floats, vectorized for
// the machine they run on. No LibTorch here: they are compiled with other options. No argument may
// overlap another.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_LOOPS_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_LOOPS_H_

#include <cstdint>

namespace qpruner::engine {

// Sum of x^2, and of x y z.
float SquareSum(const float* x, int64_t width);
float TripleDot(const float* x, const float* y, const float* z, int64_t width);

// y = x scale weight
void ScaleRow(const float* x, const float* weight, float scale, int64_t width, float* y);

// sum += scale gradient weight - shift x
void AddNormGradientRow(const float* x, const float* weight, const float* gradient, float scale,
                        float shift, int64_t width, float* sum);

// Rotary embedding of one head of 2 half elements, pairs (i, i + half); and its transpose.
void RotateRow(const float* x, const float* cos, const float* sin, int64_t half, float* y);
void RotateBackRow(const float* g, const float* cos, const float* sin, int64_t half, float* d);

// y += x
void AddRow(const float* x, int64_t width, float* y);

// activation = gate sigmoid up
void SwiGluRow(const float* gate, const float* up, const float* sigmoid, int64_t width,
               float* activation);
void SwiGluBackwardRow(const float* gate, const float* up, const float* sigmoid,
                       const float* gradient, int64_t width, float* gate_gradient,
                       float* up_gradient);

// mask = 0 where a draw from (key, element) falls below `threshold` / 2^32, else `scale`.
void MaskRow(uint64_t key, uint32_t threshold, float scale, int64_t width, float* mask);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_LOOPS_H_
