// The parts of a decoder block between its matrix products, each with its derivative written out:
// one pass over memory where a chain of tensor operations takes five to ten. float32 on the CPU
// takes loops of our own; every other dtype and device the same formulas in ATen, which are the
// reference of the tests as well.
//
// Rows are tokens: [batch * length, width], the last dimension dense, rows at any stride. Sums run
// within a row, so results do not depend on the number of threads. Nothing here records gradients.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_KERNELS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/engine/model/decoder.h"

namespace qpruner::engine {

// `slot` if it has this shape, dtype and device already, else a new tensor put there: buffers that
// every step needs again are allocated (and their pages mapped) once.
at::Tensor& Reuse(at::Tensor& slot, at::IntArrayRef shape, const at::TensorOptions& options);

// value = x / rms(x) * weight; inverse_rms [rows] float32 (float64 for float64).
void RmsNormForward(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& value,
                    at::Tensor& inverse_rms);
// dL/dx from dL/dvalue, added to `sum` [rows, width], which is dense.
void AddRmsNormBackward(const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& inverse_rms, const at::Tensor& value_gradient,
                        at::Tensor& sum);

// How a projection's columns become attention heads.
struct ProjectionLayout {
  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t repeats = 1;     // Copies of each head: query heads that share a key/value head.
  int64_t padded_dim = 0;  // >= head_dim; the rest is zeros.
};

// projection [rows, heads * head_dim] -> [batch, heads * repeats, length, padded_dim], rotated by
// `rotary` unless it is null.
void SplitHeads(const at::Tensor& projection, const ProjectionLayout& layout,
                const RotaryTables* rotary, at::Tensor& heads);
// The transpose of that map: gradient [batch, heads * repeats, length, padded_dim] (any strides
// with a dense last dimension) -> projection_gradient [rows, heads * head_dim], written.
void SplitHeadsBackward(const at::Tensor& gradient, const ProjectionLayout& layout,
                        const RotaryTables* rotary, at::Tensor projection_gradient);

// activation = gate sigmoid(gate) up; sigmoid is kept for the derivative. All [rows, width].
void SwiGluForward(const at::Tensor& gate, const at::Tensor& up, at::Tensor& sigmoid,
                   at::Tensor& activation);
// Writes dL/dgate and dL/dup.
void SwiGluBackward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& sigmoid,
                    const at::Tensor& activation_gradient, at::Tensor gate_gradient,
                    at::Tensor up_gradient);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_BLOCK_KERNELS_H_
