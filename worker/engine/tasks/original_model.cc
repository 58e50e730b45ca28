#include "worker/engine/tasks/original_model.h"

#include <ATen/ATen.h>

#include "base/status_macros.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/tasks/prepared_model.h"
#include "worker/engine/tasks/source_uri.h"

namespace qpruner::engine {
namespace {

at::ScalarType StoredDType(const Checkpoint& checkpoint) {
  for (const ExpectedTensor& tensor : ExpectedTensors(checkpoint.config())) {
    if (checkpoint.tensor(tensor.name).dtype != DType::kBF16) return at::kFloat;
  }
  return at::kBFloat16;
}

}  // namespace

absl::StatusOr<OriginalModel> OpenOriginalModel(const std::string& uri,
                                                const std::string& builtin_dir,
                                                const std::string& input_dir, at::Device device) {
  OriginalModel model;
  ASSIGN_OR_RETURN(model.folder, ResolveModel(uri, builtin_dir, input_dir));
  ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(model.folder));
  model.stored = StoredDType(*model.checkpoint);
  model.source = MakeCheckpointSource(model.checkpoint, device, ComputeDType(device, model.stored));
  return model;
}

}  // namespace qpruner::engine
