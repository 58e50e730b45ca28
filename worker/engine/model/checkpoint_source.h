// Weights out of a checkpoint on disk.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_CHECKPOINT_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_CHECKPOINT_SOURCE_H_

#include <memory>
#include <string>

#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Hands out the checkpoint's tensors, converted to `dtype` on `device`. A tensor that the file
// already holds in `dtype`, for the CPU, aliases the mapping and keeps it alive: no copy is made.
// Quantized tensors of a GGUF file are dequantized each time they are asked for, so that memory
// stays at one block.
std::unique_ptr<WeightSource> MakeCheckpointSource(std::shared_ptr<const Checkpoint> checkpoint,
                                                   at::Device device, at::ScalarType dtype);

// A mapped tensor as a CPU tensor of the file's dtype. Aliases `view` if it is aligned, and then
// `keep_alive` lives as long as the tensor does; otherwise a copy.
at::Tensor TensorFromView(const TensorView& view, std::shared_ptr<const void> keep_alive);

// The way back: a tensor's content, row-major, as it is and as `dtype`.
std::string BytesOf(const at::Tensor& tensor);
std::string BytesOf(const at::Tensor& tensor, at::ScalarType dtype);

// The dtype of the file as LibTorch calls it, and back. Back throws c10::Error for other dtypes.
at::ScalarType ScalarTypeOf(DType dtype);
DType DTypeOf(at::ScalarType type);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_CHECKPOINT_SOURCE_H_
