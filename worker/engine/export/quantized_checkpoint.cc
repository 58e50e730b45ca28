#include "worker/engine/export/quantized_checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/export/model_folder.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

// Where a linear is.
struct Place {
  int64_t block;
  LinearKind kind;
};

std::map<std::string, Place> PlacesOf(const ModelConfig& config) {
  std::map<std::string, Place> places;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    for (LinearKind kind : kLinearKinds) places[LinearName(block, kind)] = {block, kind};
  }
  return places;
}

}  // namespace

TensorToWrite PackedTensorToWrite(std::string name, DType dtype, std::vector<int64_t> shape,
                                  std::function<at::Tensor()> tensor) {
  return {.name = std::move(name),
          .dtype = dtype,
          .shape = std::move(shape),
          .bytes = [tensor = std::move(tensor)] { return BytesOf(tensor()); }};
}

absl::StatusOr<std::vector<std::string>> WriteQuantizedCheckpoint(
    const std::string& folder, QuantizedSource& source, const QuantizedCheckpoint& checkpoint) {
  RETURN_IF_ERROR(CreateFolders(folder));
  const ModelConfig& config = source.config();
  const std::map<std::string, Place> places = PlacesOf(config);
  CheckpointTensors tensors(source);
  std::vector<TensorToWrite> to_write;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    absl::string_view linear = expected.name;
    const auto place =
        absl::ConsumeSuffix(&linear, ".weight") ? places.find(std::string(linear)) : places.end();
    if (place != places.end()) {
      const Format& format = source.assignment().at(place->first);
      if (format.kind != FormatKind::kBfloat16) {
        const auto packed = [&source, at = place->second] {
          return source.Packed(at.block, at.kind);
        };
        for (TensorToWrite& tensor :
             checkpoint.pack(absl::StrCat(place->first, "."), format, expected.shape[0],
                             expected.shape[1], packed)) {
          to_write.push_back(std::move(tensor));
        }
        continue;
      }
    }
    to_write.push_back({.name = expected.name,
                        .dtype = DType::kBF16,
                        .shape = expected.shape,
                        .bytes = [&tensors, name = expected.name] {
                          return BytesOf(tensors.Get(name), at::kBFloat16);
                        }});
  }
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/model.safetensors"), std::move(to_write),
                                   {{"format", "pt"}}));
  nlohmann::json json = ModelConfigToJson(config, "bfloat16");
  json["quantization_config"] = checkpoint.quantization_config;
  RETURN_IF_ERROR(WriteModelConfig(folder, json));
  ASSIGN_OR_RETURN(std::vector<std::string> written,
                   WriteTokenizerFiles(checkpoint.tokenizer_from, folder));
  written.insert(written.end(), {"config.json", "model.safetensors"});
  std::sort(written.begin(), written.end());
  return written;
}

}  // namespace qpruner::engine
