// The client's model, as PREPARE measures it and as fine-tuning's teacher.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_ORIGINAL_MODEL_H_
#define QPRUNER_WORKER_ENGINE_TASKS_ORIGINAL_MODEL_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

struct OriginalModel {
  std::string folder;
  std::shared_ptr<const Checkpoint> checkpoint;
  // The type that all of its weights can be stored in without loss: bfloat16 if they are in it,
  // else float32 (which holds float16).
  at::ScalarType stored = at::kFloat;
  std::unique_ptr<WeightSource> source;  // Computes in ComputeDType(device, stored).
};

// `uri` as in ModelSource. INVALID_ARGUMENT, NOT_FOUND: what is wrong with the URI or the files.
absl::StatusOr<OriginalModel> OpenOriginalModel(const std::string& uri,
                                                const std::string& builtin_dir,
                                                const std::string& input_dir, at::Device device);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_ORIGINAL_MODEL_H_
