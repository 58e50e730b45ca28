#include "worker/engine/export/hf_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/export/model_folder.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {

absl::StatusOr<std::vector<std::string>> WriteHfModel(const std::string& folder,
                                                      WeightSource& source,
                                                      const HfModelOptions& options) {
  if (options.dtype != at::kBFloat16 && options.dtype != at::kFloat) {
    return absl::InvalidArgumentError(absl::StrCat(
        "A model is exported in bfloat16 or float32, not ", c10::toString(options.dtype)));
  }
  RETURN_IF_ERROR(CreateFolders(folder));
  const ModelConfig& config = source.config();
  std::vector<std::string> written;

  CheckpointTensors tensors(source);
  std::vector<TensorToWrite> to_write;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    to_write.push_back({.name = expected.name,
                        .dtype = DTypeOf(options.dtype),
                        .shape = expected.shape,
                        .bytes = [&tensors, name = expected.name, dtype = options.dtype] {
                          return BytesOf(tensors.Get(name), dtype);
                        }});
  }
  // transformers refuses a file that does not say which framework wrote it.
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/model.safetensors"), std::move(to_write),
                                   {{"format", "pt"}}));
  written.push_back("model.safetensors");

  const char* dtype_name = options.dtype == at::kFloat ? "float32" : "bfloat16";
  RETURN_IF_ERROR(WriteModelConfig(folder, ModelConfigToJson(config, dtype_name)));
  written.push_back("config.json");
  ASSIGN_OR_RETURN(const std::vector<std::string> tokenizer,
                   WriteTokenizerFiles(options.tokenizer_from, folder));
  written.insert(written.end(), tokenizer.begin(), tokenizer.end());
  std::sort(written.begin(), written.end());
  return written;
}

}  // namespace qpruner::engine
