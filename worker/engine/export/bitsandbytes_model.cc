#include "worker/engine/export/bitsandbytes_model.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/engine/export/quantized_checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/quantize/codebook_format.h"
#include "worker/engine/quantize/codebooks.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

bool IsFourBit(const Format& format) {
  return format.bits == 4 &&
         (format.kind == FormatKind::kNormalFloat || format.kind == FormatKind::kFloat4);
}

const char* TypeName(const Format& format) {
  return format.kind == FormatKind::kFloat4 ? "fp4" : "nf4";
}

template <size_t kSize>
at::Tensor TableTensor(const std::array<float, kSize>& table) {
  return at::tensor(at::ArrayRef<float>(table.data(), kSize), at::kFloat);
}

// The JSON of bitsandbytes' QuantState.as_dict(packed=True).
std::string QuantStateJson(const PackedWeight& packed) {
  Json state = {{"quant_type", TypeName(packed.format)},
                {"blocksize", kCodebookBlock},
                {"dtype", "bfloat16"},
                {"shape", {packed.rows, packed.cols}}};
  if (packed.format.double_quantized) {
    state["nested_blocksize"] = kNestedBlock;
    state["nested_dtype"] = "float32";
    state["nested_offset"] = static_cast<double>(packed.tensors.at("offset").item<float>());
  }
  return state.dump();
}

std::vector<TensorToWrite> PackFourBit(const std::string& prefix, const Format& format,
                                       int64_t rows, int64_t cols,
                                       const std::function<PackedWeight()>& packed) {
  const std::string weight = prefix + "weight";
  std::vector<TensorToWrite> tensors;
  for (const PackedTensorLayout& layout : PackedLayout(format, rows, cols)) {
    if (layout.name == "offset") continue;  // In the JSON.
    const bool is_codes = layout.name == "codes";
    tensors.push_back(PackedTensorToWrite(
        is_codes ? weight : absl::StrCat(weight, ".", layout.name), DTypeOf(layout.dtype),
        is_codes ? std::vector<int64_t>{layout.shape[0], 1} : layout.shape,
        [packed, name = layout.name] { return packed().tensors.at(name); }));
  }
  tensors.push_back(PackedTensorToWrite(weight + ".quant_map", DType::kF32, {16}, [format] {
    return format.kind == FormatKind::kFloat4 ? TableTensor(kFp4Values) : TableTensor(kNf4Values);
  }));
  if (format.double_quantized) {
    tensors.push_back(PackedTensorToWrite(weight + ".nested_quant_map", DType::kF32, {256},
                                          [] { return TableTensor(kDynamicMap); }));
  }
  // The length of the JSON is part of the file's header: made now.
  std::string state = QuantStateJson(packed());
  const auto size = static_cast<int64_t>(state.size());
  tensors.push_back({.name = absl::StrCat(weight, ".quant_state.bitsandbytes__", TypeName(format)),
                     .dtype = DType::kU8,
                     .shape = {size},
                     .bytes = [state = std::move(state)] { return state; }});
  return tensors;
}

std::vector<TensorToWrite> PackEightBit(const std::string& prefix, const Format&, int64_t rows,
                                        int64_t cols, const std::function<PackedWeight()>& packed) {
  return {PackedTensorToWrite(prefix + "weight", DType::kI8, {rows, cols},
                              [packed] { return packed().tensors.at("codes"); }),
          PackedTensorToWrite(prefix + "SCB", DType::kF32, {rows},
                              [packed] { return packed().tensors.at("SCB"); }),
          {.name = prefix + "weight_format", .dtype = DType::kU8, .shape = {}, .bytes = [] {
             return std::string(1, '\0');
           }}};
}

std::vector<TensorToWrite> Pack(const std::string& prefix, const Format& format, int64_t rows,
                                int64_t cols, const std::function<PackedWeight()>& packed) {
  return IsFourBit(format) ? PackFourBit(prefix, format, rows, cols, packed)
                           : PackEightBit(prefix, format, rows, cols, packed);
}

}  // namespace

absl::Status CheckBitsandbytes(const ModelConfig& config, const std::vector<Format>& formats) {
  if (!config.uniform()) {
    return absl::InvalidArgumentError(
        "export.formats BITSANDBYTES: the blocks differ in shape, which no engine that reads it "
        "loads");
  }
  std::string first;
  for (const Format& format : formats) {
    if (format.kind == FormatKind::kBfloat16) continue;
    if (!IsFourBit(format) && format.kind != FormatKind::kInteger8Row) {
      return absl::InvalidArgumentError(absl::StrCat(
          "export.formats BITSANDBYTES holds nf4, fp4 (each also doubly quantized), int8-row and "
          "bfloat16, not ",
          FormatName(format)));
    }
    if (!first.empty() && FormatName(format) != first) {
      return absl::InvalidArgumentError(
          absl::StrCat("export.formats BITSANDBYTES holds one format throughout, not both ", first,
                       " and ", FormatName(format)));
    }
    first = FormatName(format);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> WriteBitsandbytes(const std::string& folder,
                                                           QuantizedSource& source,
                                                           const std::string& tokenizer_from) {
  Format format = Format::Bfloat16();
  Json skipped = {"lm_head"};
  for (const auto& [linear, of_linear] : source.assignment()) {
    if (of_linear.kind == FormatKind::kBfloat16) {
      skipped.push_back(linear);
    } else {
      format = of_linear;
    }
  }
  const bool four_bit = IsFourBit(format);
  return WriteQuantizedCheckpoint(
      folder, source,
      {.quantization_config = {{"quant_method", "bitsandbytes"},
                               {"_load_in_4bit", four_bit},
                               {"_load_in_8bit", !four_bit},
                               {"load_in_4bit", four_bit},
                               {"load_in_8bit", !four_bit},
                               {"bnb_4bit_compute_dtype", "bfloat16"},
                               {"bnb_4bit_quant_storage", "uint8"},
                               {"bnb_4bit_quant_type", TypeName(format)},
                               {"bnb_4bit_use_double_quant", format.double_quantized},
                               {"llm_int8_enable_fp32_cpu_offload", false},
                               {"llm_int8_has_fp16_weight", false},
                               {"llm_int8_skip_modules", std::move(skipped)},
                               {"llm_int8_threshold", 6.0}},
       .pack = Pack,
       .tokenizer_from = tokenizer_from});
}

}  // namespace qpruner::engine
