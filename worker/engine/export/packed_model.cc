#include "worker/engine/export/packed_model.h"

#include <ATen/ATen.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/formats/strict_json.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr char kWeightsFile[] = "model.safetensors";
constexpr char kDescriptionFile[] = "quantization.json";
constexpr char kFormatName[] = "qpruner-packed";
constexpr int kVersion = 1;
constexpr int64_t kMaxDescriptionBytes = int64_t{64} << 20;

using Json = nlohmann::json;

Json Describe(const ModelConfig& config, const FormatAssignment& assignment) {
  Json linears = Json::object();
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      const std::string name = LinearName(block, kind);
      const std::vector<int64_t> shape =
          LinearShape(config, config.blocks[static_cast<size_t>(block)], kind);
      const Format& format = assignment.at(name);
      linears[name] = {{"format", FormatName(format)},
                       {"bits", format.bits},
                       {"shape", shape},
                       {"bytes", PackedBytes(format, shape[0], shape[1])}};
    }
  }
  const ModelBytes bytes = CountBytes(config, assignment);
  return {{"format", kFormatName},
          {"version", kVersion},
          {"linears", std::move(linears)},
          {"linear_bytes", bytes.linear_bytes},
          {"fixed_bytes", bytes.fixed_bytes},
          {"total_bytes", bytes.total()},
          {"average_bits", bytes.average_bits()}};
}

// The tensors of ExpectedTensors that are not a linear's weight.
std::vector<ExpectedTensor> FixedTensorsOf(const ModelConfig& config,
                                           const FormatAssignment& assignment) {
  std::vector<ExpectedTensor> fixed;
  for (ExpectedTensor& tensor : ExpectedTensors(config)) {
    const size_t dot = tensor.name.rfind('.');
    const bool is_linear =
        tensor.name.substr(dot) == ".weight" && assignment.count(tensor.name.substr(0, dot)) > 0;
    if (!is_linear) fixed.push_back(std::move(tensor));
  }
  return fixed;
}

// One entry of "linears".
struct LinearDescription {
  Format format;
  int64_t rows = 0;
  int64_t cols = 0;
};

absl::StatusOr<LinearDescription> ParseLinear(const std::string& name, const Json& json) {
  const auto error = [&](absl::string_view rule) {
    return absl::InvalidArgumentError(
        absl::StrCat(kDescriptionFile, ": linear ", QuotedForMessage(name), " ", rule));
  };
  if (!json.is_object() || !json.contains("format") || !json["format"].is_string() ||
      !json.contains("shape") || !json["shape"].is_array() || json["shape"].size() != 2 ||
      !json["shape"][0].is_number_unsigned() || !json["shape"][1].is_number_unsigned()) {
    return error("must have a \"format\" name and a \"shape\" of two sizes");
  }
  const auto format = ParseFormatName(json["format"].get<std::string>());
  if (!format.ok()) return error(format.status().message());
  // So that no product of the layout below can overflow; no linear comes near it.
  constexpr uint64_t kMaxSize = uint64_t{1} << 30;
  constexpr uint64_t kMaxWeights = uint64_t{1} << 48;
  const auto rows = json["shape"][0].get<uint64_t>(), cols = json["shape"][1].get<uint64_t>();
  if (rows < 1 || rows > kMaxSize || cols < 1 || cols > kMaxSize || rows * cols > kMaxWeights) {
    return error(absl::StrCat("must have a \"shape\" of sizes from 1 to ", kMaxSize,
                              " and at most ", kMaxWeights, " weights"));
  }
  return LinearDescription{*format, static_cast<int64_t>(rows), static_cast<int64_t>(cols)};
}

}  // namespace

absl::StatusOr<std::vector<std::string>> WritePackedModel(const std::string& folder,
                                                          QuantizedSource& source) {
  RETURN_IF_ERROR(CreateFolders(folder));
  const ModelConfig& config = source.config();
  std::vector<TensorToWrite> to_write;
  CheckpointTensors tensors(source, LinearSet());
  for (const ExpectedTensor& fixed : FixedTensorsOf(config, source.assignment())) {
    to_write.push_back({.name = fixed.name,
                        .dtype = DType::kBF16,
                        .shape = fixed.shape,
                        .bytes = [&tensors, name = fixed.name] {
                          return BytesOf(tensors.Get(name), at::kBFloat16);
                        }});
  }
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      const std::string linear = LinearName(block, kind);
      const std::vector<int64_t> shape =
          LinearShape(config, config.blocks[static_cast<size_t>(block)], kind);
      for (const PackedTensorLayout& layout :
           PackedLayout(source.assignment().at(linear), shape[0], shape[1])) {
        to_write.push_back({.name = absl::StrCat(linear, ".", layout.name),
                            .dtype = DTypeOf(layout.dtype),
                            .shape = layout.shape,
                            .bytes = [&source, block, kind, layout] {
                              return BytesOf(source.Packed(block, kind).tensors.at(layout.name),
                                             layout.dtype);
                            }});
      }
    }
  }
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/", kWeightsFile), std::move(to_write),
                                   {{"format", kFormatName}, {"version", absl::StrCat(kVersion)}}));
  RETURN_IF_ERROR(
      WriteFileDurably(absl::StrCat(folder, "/", kDescriptionFile),
                       absl::StrCat(Describe(config, source.assignment()).dump(2), "\n")));
  return std::vector<std::string>{kWeightsFile, kDescriptionFile};
}

absl::StatusOr<std::unique_ptr<PackedModel>> PackedModel::Open(const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(absl::StrCat(folder, "/", kDescriptionFile), kMaxDescriptionBytes));
  const auto description = ParseStrictJsonObject(text);
  if (!description.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kDescriptionFile, ": ", description.status().message()));
  }
  if (description->value("format", Json()) != kFormatName ||
      description->value("version", Json()) != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat(kDescriptionFile, ": must say format \"",
                                                   kFormatName, "\" and version ", kVersion));
  }
  const auto linears = description->find("linears");
  if (linears == description->end() || !linears->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kDescriptionFile, ": \"linears\" must be an object"));
  }

  auto model = std::unique_ptr<PackedModel>(new PackedModel());
  ASSIGN_OR_RETURN(model->file_, SafetensorsReader::Open(absl::StrCat(folder, "/", kWeightsFile)));
  const auto& tensors = model->file_->tensors();
  std::set<std::string> packed;
  for (const auto& [name, json] : linears->items()) {
    ASSIGN_OR_RETURN(const LinearDescription linear, ParseLinear(name, json));
    for (const PackedTensorLayout& layout : PackedLayout(linear.format, linear.rows, linear.cols)) {
      const std::string tensor = absl::StrCat(name, ".", layout.name);
      const auto found = tensors.find(tensor);
      if (found == tensors.end() || found->second.dtype != DTypeOf(layout.dtype) ||
          found->second.shape != layout.shape) {
        return absl::InvalidArgumentError(
            absl::StrCat(kWeightsFile, ": ", FormatName(linear.format), " of [", linear.rows, ", ",
                         linear.cols, "] calls for tensor ", QuotedForMessage(tensor), " of dtype ",
                         DTypeName(DTypeOf(layout.dtype)), " and shape [",
                         absl::StrJoin(layout.shape, ", "), "]"));
      }
      packed.insert(tensor);
    }
    model->assignment_[name] = linear.format;
    model->shapes_[name] = {linear.rows, linear.cols};
  }
  for (const auto& [name, view] : tensors) {
    if (packed.count(name) > 0) continue;
    if (view.dtype != DType::kBF16) {
      return absl::InvalidArgumentError(
          absl::StrCat(kWeightsFile, ": tensor ", QuotedForMessage(name),
                       " belongs to no linear, so it must be BF16, not ", DTypeName(view.dtype)));
    }
    model->fixed_.push_back(name);
  }
  return model;
}

PackedWeight PackedModel::Linear(const std::string& name) const {
  const auto [rows, cols] = shapes_.at(name);
  PackedWeight packed{.format = assignment_.at(name), .rows = rows, .cols = cols};
  for (const PackedTensorLayout& layout : PackedLayout(packed.format, rows, cols)) {
    packed.tensors[layout.name] =
        TensorFromView(file_->tensors().at(absl::StrCat(name, ".", layout.name)), file_).clone();
  }
  return packed;
}

std::map<std::string, at::Tensor> PackedModel::FixedTensors() const {
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : fixed_) {
    tensors[name] = TensorFromView(file_->tensors().at(name), file_).clone();
  }
  return tensors;
}

}  // namespace qpruner::engine
