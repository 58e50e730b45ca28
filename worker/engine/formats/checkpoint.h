// A model on disk: a Hugging Face folder, or a GGUF file. One door for both; what is behind it does
// not matter to the rest of the engine.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

// A tensor of a checkpoint, under its Hugging Face name. Valid as long as the checkpoint.
struct CheckpointTensor {
  // The type that holds each of its values exactly: F32, F16 or BF16. F32 for quantized tensors.
  DType dtype;
  std::vector<int64_t> shape;
  // As the file has it. If `in_place`: its values, row-major, of `dtype`; otherwise they are
  // quantized or in another order, and only ReadRows gives them.
  absl::string_view bytes;
  bool in_place = true;

  TensorView view() const { return {dtype, shape, bytes}; }
};

// Immutable and thread-safe once open. Only maps the weights: opening a large model is quick.
class Checkpoint {
 public:
  // Opens `path`.
  //
  // A folder: config.json with model.safetensors, or with model.safetensors.index.json and the
  // shards it names. Checks that every tensor the config calls for is there with its shape and a
  // floating dtype (F32, F16, BF16), and that nothing else is, except what transformers ignores
  // too: lm_head.weight of a tied model and rotary_emb.inv_freq buffers. A tied model that stores
  // only lm_head.weight has it as model.embed_tokens.weight here.
  //
  // A file whose name ends in .gguf: the same checks against the config that its metadata describes
  // (gguf_model.h); tensors have their Hugging Face names and row order.
  //
  // INVALID_ARGUMENT names the file, key or tensor and the rule. NOT_FOUND names the file.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& path);
  virtual ~Checkpoint() = default;

  const std::string& path() const { return path_; }
  const ModelConfig& config() const { return config_; }

  // A tensor of ExpectedTensors(config()). Aborts on any other name.
  const CheckpointTensor& tensor(const std::string& name) const;
  // Writes the values of `count` rows (first dimension) from `first` on, as the tensor's dtype.
  virtual void ReadRows(const std::string& name, int64_t first, int64_t count, char* out) const;
  // Bytes of all tensors that the config calls for, as stored.
  int64_t weight_bytes() const;

  // Reads all weights once and looks for infinities and NaNs. INVALID_ARGUMENT names the first such
  // tensor and the position. Meant to be called once, before work starts on a foreign model.
  absl::Status CheckFinite() const;

 protected:
  Checkpoint(std::string path, ModelConfig config)
      : path_(std::move(path)), config_(std::move(config)) {}
  // Takes what the config calls for out of `found`, checking names, shapes and dtypes.
  // `described_by` is what the config is called in messages. What is left in `found` was not called
  // for.
  absl::Status TakeExpected(std::map<std::string, CheckpointTensor>& found,
                            absl::string_view described_by);

 private:
  const std::string path_;
  const ModelConfig config_;
  std::map<std::string, CheckpointTensor> tensors_;
};

// The two kinds. Use Checkpoint::Open.
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenFolderCheckpoint(const std::string& folder);
absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufCheckpoint(const std::string& path);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_CHECKPOINT_H_
