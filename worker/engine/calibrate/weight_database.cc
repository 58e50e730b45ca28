#include "worker/engine/calibrate/weight_database.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/calibrate/input_moments.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

std::string Key(int64_t block, LinearKind kind, const Format& format, const std::string& tensor) {
  return absl::StrCat(LinearName(block, kind), ".", FormatName(format), ".", tensor);
}

std::vector<Format> SupportedOf(const std::vector<Format>& formats) {
  std::vector<Format> supported;
  std::copy_if(formats.begin(), formats.end(), std::back_inserter(supported), SupportsGptq);
  return supported;
}

std::vector<TensorToWrite> QuantizeBlock(int64_t block, const BlockWeights& weights,
                                         const InputMoments& moments,
                                         const std::vector<Format>& formats,
                                         const GptqOptions& options) {
  std::vector<TensorToWrite> tensors;
  for (LinearKind kind : kLinearKinds) {
    std::vector<PackedWeight> packed;
    try {
      packed = QuantizeGptq(weights.weight[kind], moments[kind], formats, options);
    } catch (c10::Error& error) {
      error.add_context(absl::StrCat("while quantizing ", LinearName(block, kind)));
      throw;
    }
    for (const PackedWeight& weight : packed) {
      for (const auto& [name, tensor] : weight.tensors) {
        tensors.push_back({.name = Key(block, kind, weight.format, name),
                           .dtype = DTypeOf(tensor.scalar_type()),
                           .shape = tensor.sizes().vec(),
                           .bytes = [tensor = tensor] { return BytesOf(tensor); }});
      }
    }
  }
  return tensors;
}

}  // namespace

std::string WeightDatabaseFile(int64_t block) {
  return absl::StrFormat("block-%05d.safetensors", block);
}

absl::Status WriteWeightDatabase(const std::string& folder, WeightSource& source,
                                 const std::vector<TokenBatch>& batches,
                                 const std::vector<Format>& formats, const GptqOptions& options,
                                 const std::function<void(double fraction)>& on_progress,
                                 const WeightDatabaseProgress& progress) {
  RETURN_IF_ERROR(CreateFolders(folder));
  const std::vector<Format> supported = SupportedOf(formats);
  absl::Status written;
  WalkInputMoments(
      source, batches,
      [&](int64_t block, const BlockWeights& weights, const InputMoments& moments) {
        if (!written.ok()) return;
        written = WriteSafetensors(absl::StrCat(folder, "/", WeightDatabaseFile(block)),
                                   QuantizeBlock(block, weights, moments, supported, options),
                                   {{"format", "qpruner-weight-database"}});
        if (written.ok() && progress.on_block) progress.on_block(block);
      },
      on_progress, progress.written_blocks);
  return written;
}

absl::StatusOr<std::shared_ptr<const SafetensorsReader>> OpenWeightDatabaseBlock(
    const std::string& folder, const ModelConfig& config, const std::vector<Format>& formats,
    int64_t block) {
  const std::string name = WeightDatabaseFile(block);
  ASSIGN_OR_RETURN(std::shared_ptr<const SafetensorsReader> file,
                   SafetensorsReader::Open(absl::StrCat(folder, "/", name)));
  const std::vector<Format> supported = SupportedOf(formats);
  for (LinearKind kind : kLinearKinds) {
    const std::vector<int64_t> shape =
        LinearShape(config, config.blocks[static_cast<size_t>(block)], kind);
    for (const Format& format : supported) {
      for (const PackedTensorLayout& layout : PackedLayout(format, shape[0], shape[1])) {
        const std::string key = Key(block, kind, format, layout.name);
        const auto found = file->tensors().find(key);
        if (found == file->tensors().end() || found->second.dtype != DTypeOf(layout.dtype) ||
            found->second.shape != layout.shape) {
          return absl::InvalidArgumentError(absl::StrCat(
              name, ": must hold tensor ", key, " of dtype ", DTypeName(DTypeOf(layout.dtype)),
              " and shape [", absl::StrJoin(layout.shape, ", "), "]"));
        }
      }
    }
  }
  return file;
}

absl::StatusOr<std::unique_ptr<WeightDatabase>> WeightDatabase::Open(
    const std::string& folder, const ModelConfig& config, const std::vector<Format>& formats) {
  auto database = std::unique_ptr<WeightDatabase>(new WeightDatabase());
  database->config_ = config;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    ASSIGN_OR_RETURN(std::shared_ptr<const SafetensorsReader> file,
                     OpenWeightDatabaseBlock(folder, config, formats, block));
    database->blocks_.push_back(std::move(file));
  }
  return database;
}

std::optional<PackedWeight> WeightDatabase::Find(int64_t block, LinearKind kind,
                                                 const Format& format) const {
  const std::shared_ptr<const SafetensorsReader>& file = blocks_.at(static_cast<size_t>(block));
  const std::vector<int64_t> shape =
      LinearShape(config_, config_.blocks[static_cast<size_t>(block)], kind);
  PackedWeight packed{.format = format, .rows = shape[0], .cols = shape[1]};
  for (const PackedTensorLayout& layout : PackedLayout(format, shape[0], shape[1])) {
    const auto found = file->tensors().find(Key(block, kind, format, layout.name));
    if (found == file->tensors().end()) return std::nullopt;
    packed.tensors[layout.name] = TensorFromView(found->second, file);
  }
  return packed;
}

}  // namespace qpruner::engine
