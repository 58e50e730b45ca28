#include "worker/engine/export/compressed_tensors.h"

#include <ATen/ATen.h>

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "worker/engine/export/quantized_checkpoint.h"
#include "worker/engine/quantize/bit_packing.h"
#include "worker/engine/quantize/integer_format.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

constexpr int64_t Words(int64_t count, int bits) { return (count * bits + 31) / 32; }

bool Holds(const Format& format) {
  switch (format.kind) {
    case FormatKind::kIntegerGroup:
      return format.symmetric && (format.bits == 4 || format.bits == 8);
    case FormatKind::kInteger8Row:
    case FormatKind::kBfloat16:
      return true;
    default:
      return false;
  }
}

// Unsigned codes [rows, cols], each row as a little-endian bit stream in whole 32-bit words.
at::Tensor PackWords(const at::Tensor& codes, int bits) {
  const at::Tensor from = codes.contiguous();
  const int64_t rows = from.size(0), cols = from.size(1), words = Words(cols, bits);
  at::Tensor packed = at::zeros({rows, words}, at::kInt);
  auto* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  for (int64_t row = 0; row < rows; ++row) {
    PackBits(from.const_data_ptr<uint8_t>() + row * cols, cols, bits, to + row * words * 4);
  }
  return packed;
}

at::Tensor UnsignedCodes(const PackedWeight& packed) {
  if (packed.format.kind == FormatKind::kIntegerGroup) return UnpackIntegers(packed).codes;
  return (packed.tensors.at("codes").to(at::kShort) + 128).to(at::kByte);
}

std::vector<TensorToWrite> PackLinearWords(const std::string& prefix, const Format& format,
                                           int64_t rows, int64_t cols,
                                           const std::function<PackedWeight()>& packed) {
  const int bits = format.bits;
  std::vector<TensorToWrite> tensors = {
      PackedTensorToWrite(prefix + "weight_packed", DType::kI32, {rows, Words(cols, bits)},
                          [=] { return PackWords(UnsignedCodes(packed()), bits); }),
      PackedTensorToWrite(prefix + "weight_shape", DType::kI64, {2}, [=] {
        return at::tensor({rows, cols}, at::kLong);
      })};
  if (format.kind == FormatKind::kInteger8Row) {
    tensors.push_back(PackedTensorToWrite(prefix + "weight_scale", DType::kF32, {rows, 1}, [=] {
      return packed().tensors.at("SCB").unsqueeze(1) / 127;
    }));
    return tensors;
  }
  const int64_t groups = cols / format.group_size;
  tensors.push_back(PackedTensorToWrite(prefix + "weight_scale", DType::kBF16, {rows, groups},
                                        [=] { return packed().tensors.at("scale"); }));
  return tensors;
}

// One expression for each kind of linear: its blocks.
Json TargetsOf(const FormatAssignment& assignment, const ModelConfig& config,
               const Format& format) {
  Json targets = Json::array();
  for (LinearKind kind : kLinearKinds) {
    std::vector<int64_t> blocks;
    for (int64_t block = 0; block < config.num_blocks(); ++block) {
      if (assignment.at(LinearName(block, kind)) == format) blocks.push_back(block);
    }
    if (blocks.empty()) continue;
    targets.push_back(absl::StrCat("re:^model\\.layers\\.(", absl::StrJoin(blocks, "|"), ")\\.",
                                   absl::StrReplaceAll(LinearSuffix(kind), {{".", "\\."}}), "$"));
  }
  return targets;
}

Json GroupOf(const Format& format, Json targets) {
  const bool row = format.kind == FormatKind::kInteger8Row;
  return {{"targets", std::move(targets)},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"weights",
           {{"num_bits", format.bits},
            {"type", "int"},
            {"symmetric", row || format.symmetric},
            {"strategy", row ? "channel" : "group"},
            {"group_size", row ? Json(nullptr) : Json(format.group_size)},
            {"dynamic", false},
            {"actorder", nullptr},
            {"block_structure", nullptr},
            {"observer", "minmax"},
            {"observer_kwargs", Json::object()}}}};
}

}  // namespace

absl::Status CheckCompressedTensors(const ModelConfig& config, const std::vector<Format>& formats) {
  if (!config.uniform()) {
    return absl::InvalidArgumentError(
        "export.formats COMPRESSED_TENSORS: the blocks differ in shape, which no engine that reads "
        "it loads");
  }
  for (const Format& format : formats) {
    if (!Holds(format)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "export.formats COMPRESSED_TENSORS holds symmetric integers of 4 or 8 bits in "
          "groups, int8-row and bfloat16, not ",
          FormatName(format)));
    }
    if (format.kind != FormatKind::kIntegerGroup) continue;
    for (LinearKind kind : kLinearKinds) {
      const int64_t cols = LinearShape(config, config.blocks.front(), kind)[1];
      if (cols % format.group_size != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("export.formats COMPRESSED_TENSORS needs rows of whole groups: those of ",
                         LinearName(0, kind), " have ", cols,
                         " weights, no multiple of the group size ", format.group_size));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> WriteCompressedTensors(const std::string& folder,
                                                                QuantizedSource& source,
                                                                const std::string& tokenizer_from) {
  std::map<std::string, Format> formats;
  for (const auto& [linear, format] : source.assignment()) formats[FormatName(format)] = format;
  Json groups = Json::object();
  for (const auto& [name, format] : formats) {
    if (format.kind == FormatKind::kBfloat16) continue;
    groups[absl::StrCat("group_", groups.size())] =
        GroupOf(format, TargetsOf(source.assignment(), source.config(), format));
  }
  return WriteQuantizedCheckpoint(folder, source,
                                  {.quantization_config = {{"quant_method", "compressed-tensors"},
                                                           {"format", "pack-quantized"},
                                                           {"quantization_status", "compressed"},
                                                           {"global_compression_ratio", nullptr},
                                                           {"kv_cache_scheme", nullptr},
                                                           {"ignore", {"lm_head"}},
                                                           {"config_groups", std::move(groups)}},
                                   .pack = PackLinearWords,
                                   .tokenizer_from = tokenizer_from});
}

}  // namespace qpruner::engine
