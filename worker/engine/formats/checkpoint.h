// A Hugging Face model folder: config.json and its weights, one safetensors file or indexed shards.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

// Immutable and thread-safe once open. Only maps the weights: opening a large model is quick.
class Checkpoint {
 public:
  // Opens `folder`: config.json with model.safetensors, or with model.safetensors.index.json and
  // the shards it names. Checks that every tensor the config calls for is there with its shape and
  // a floating dtype (F32, F16, BF16), and that nothing else is, except what transformers ignores
  // too: lm_head.weight of a tied model and rotary_emb.inv_freq buffers. A tied model that stores
  // only lm_head.weight has it as model.embed_tokens.weight here.
  // INVALID_ARGUMENT names the file or tensor and the rule. NOT_FOUND names the file.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const ModelConfig& config() const { return config_; }

  // A tensor of ExpectedTensors(config()). Aborts on any other name.
  const TensorView& tensor(const std::string& name) const;
  // Bytes of all tensors that the config calls for, as stored.
  int64_t weight_bytes() const;

  // Reads all weights once and looks for infinities and NaNs. INVALID_ARGUMENT names the first such
  // tensor and the position. Meant to be called once, before work starts on a foreign model.
  absl::Status CheckFinite() const;

 private:
  Checkpoint() = default;

  std::string folder_;
  ModelConfig config_;
  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, TensorView> tensors_;  // Views into files_.
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_
