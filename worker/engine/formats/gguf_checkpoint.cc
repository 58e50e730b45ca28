#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/ggml_dequantize.h"
#include "worker/engine/formats/gguf_model.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

// The type that holds a tensor's values exactly.
DType DTypeOf(GgmlType type) {
  switch (type) {
    case GgmlType::kF16:
      return DType::kF16;
    case GgmlType::kBF16:
      return DType::kBF16;
    default:
      return DType::kF32;
  }
}

bool IsQuantized(GgmlType type) { return InfoOf(type).block_size > 1; }

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(const std::string& path, std::unique_ptr<const GgufReader> file,
                 ModelConfig config)
      : Checkpoint(path, std::move(config)), file_(std::move(file)) {}

  absl::Status Initialize() {
    ASSIGN_OR_RETURN(const absl::string_view architecture,
                     file_->metadata().String("general.architecture", {}));
    std::map<std::string, CheckpointTensor> found;
    for (const auto& [gguf_name, tensor] : file_->tensors()) {
      if (gguf_name == kRopeFactorsTensor) continue;  // Part of the config.
      const std::optional<std::string> name = HuggingFaceNameOf(gguf_name);
      if (!name) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", QuotedForMessage(gguf_name),
                                                       " is not part of this architecture"));
      }
      if (tensor.shape.size() == 1 && IsQuantized(tensor.type)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", gguf_name, " is a vector and must be F32, F16 or BF16, is ",
                         InfoOf(tensor.type).name));
      }
      stored_[*name] = {tensor.type, HasReorderedRows(architecture, *name)};
      found.emplace(*name, CheckpointTensor{
                               .dtype = DTypeOf(tensor.type),
                               .shape = tensor.shape,
                               .bytes = tensor.bytes,
                               .in_place = !IsQuantized(tensor.type) && !stored_[*name].reordered});
    }
    RETURN_IF_ERROR(TakeExpected(found, "metadata"));
    if (!found.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ",
                                                     GgufNameOf(found.begin()->first).value_or(""),
                                                     " is none that the metadata calls for"));
    }
    return absl::OkStatus();
  }

  void ReadRows(const std::string& name, int64_t first, int64_t count, char* out) const override {
    const CheckpointTensor& tensor = this->tensor(name);
    const Stored& stored = stored_.at(name);
    const int64_t width = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
    const int64_t stored_row = GgmlBytes(stored.type, width);
    const int64_t row = width * DTypeSize(tensor.dtype);
    if (!stored.reordered && !IsQuantized(stored.type)) {
      return Checkpoint::ReadRows(name, first, count, out);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t source = stored.reordered ? GgufRowOf(first + i, config().head_dim) : first + i;
      const char* bytes = tensor.bytes.data() + source * stored_row;
      if (IsQuantized(stored.type)) {
        DequantizeGgml(stored.type, bytes, width, reinterpret_cast<float*>(out + i * row));
      } else {
        std::copy(bytes, bytes + row, out + i * row);
      }
    }
  }

 private:
  struct Stored {
    GgmlType type;
    bool reordered;  // Rows in llama.cpp's order.
  };

  const std::unique_ptr<const GgufReader> file_;
  std::map<std::string, Stored> stored_;  // By Hugging Face name.
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> OpenGgufCheckpoint(const std::string& path) {
  ASSIGN_OR_RETURN(auto file, GgufReader::Open(path));
  const auto about = [&](const absl::Status& status) {
    return absl::Status(
        status.code(), absl::StrCat("GGUF file ", path, ": ", absl::string_view(status.message())));
  };
  auto config = ModelConfigFromGguf(*file);
  if (!config.ok()) return about(config.status());
  auto checkpoint = std::make_shared<GgufCheckpoint>(path, std::move(file), *std::move(config));
  if (absl::Status status = checkpoint->Initialize(); !status.ok()) return about(status);
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

}  // namespace qpruner::engine
