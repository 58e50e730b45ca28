#include "worker/engine/export/gguf_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "worker/engine/export/checkpoint_tensors.h"
#include "worker/engine/formats/ggml_quantize.h"
#include "worker/engine/formats/gguf_model.h"
#include "worker/engine/formats/gguf_tokenizer_writer.h"

namespace qpruner::engine {
namespace {

// Fewer rows are not worth another thread.
constexpr int64_t kRowsPerThread = 16;

absl::Status Cannot(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("GGUF cannot hold this model: ", what));
}

GgufMetadataToWrite ModelMetadata(const ModelConfig& config, absl::string_view architecture,
                                  const GgufModelOptions& options) {
  GgufMetadataToWrite metadata;
  const auto key = [&](absl::string_view name) { return absl::StrCat(architecture, ".", name); };
  const auto number = [&](absl::string_view name, int64_t value) {
    metadata.AddUint32(key(name), static_cast<uint32_t>(value));
  };
  metadata.AddString("general.architecture", architecture);
  metadata.AddString("general.type", "model");
  if (!options.name.empty()) metadata.AddString("general.name", options.name);
  if (!options.description.empty()) {
    metadata.AddString("general.description", options.description);
  }
  metadata.AddUint32("general.quantization_version", 2);
  const BlockShape& shape = config.blocks.front();
  number("vocab_size", config.vocab_size);
  number("context_length", config.max_position_embeddings);
  number("embedding_length", config.hidden_size);
  number("block_count", config.num_blocks());
  number("feed_forward_length", shape.intermediate_size);
  number("attention.head_count", shape.num_heads);
  number("attention.head_count_kv", shape.num_kv_heads);
  // Pruned models have fewer heads than embedding_length / head size: llama.cpp would derive
  // another.
  number("attention.key_length", config.head_dim);
  number("attention.value_length", config.head_dim);
  number("rope.dimension_count", config.head_dim);
  metadata.AddFloat32(key("attention.layer_norm_rms_epsilon"),
                      static_cast<float>(config.rms_norm_eps));
  metadata.AddFloat32(key("rope.freq_base"), static_cast<float>(config.rope_theta));
  if (config.rope_scaling.kind == RopeScaling::Kind::kLinear) {
    metadata.AddString(key("rope.scaling.type"), "linear");
    metadata.AddFloat32(key("rope.scaling.factor"), static_cast<float>(config.rope_scaling.factor));
  }
  return metadata;
}

// The blocks of `tensor`, its rows in llama.cpp's order if `reordered`.
std::string Encode(const at::Tensor& tensor, GgmlType type, int64_t head_dim, bool reordered) {
  at::Tensor values = tensor.detach().to(at::kCPU, at::kFloat);
  if (reordered) {
    std::vector<int64_t> order(static_cast<size_t>(values.size(0)));
    for (int64_t row = 0; row < values.size(0); ++row) {
      order[static_cast<size_t>(GgufRowOf(row, head_dim))] = row;
    }
    values = values.index_select(0, at::tensor(order, at::kLong));
  }
  values = values.contiguous();
  // A vector is one row.
  const int64_t width = values.size(-1);
  const int64_t rows = values.numel() / width;
  const int64_t row_bytes = GgmlBytes(type, width);
  std::string bytes(static_cast<size_t>(rows * row_bytes), '\0');
  const auto* const from = values.const_data_ptr<float>();
  at::parallel_for(0, rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    QuantizeGgml(type, from + begin * width, (end - begin) * width,
                 bytes.data() + begin * row_bytes);
  });
  return bytes;
}

absl::StatusOr<std::string> ArchitectureThatHolds(const ModelConfig& config) {
  if (!config.uniform()) {
    return Cannot(
        "its blocks differ in shape (pruning layout PER_LAYER), and llama.cpp takes one shape for "
        "all; use layout UNIFORM");
  }
  absl::StatusOr<std::string> architecture = GgufArchitectureOf(config);
  if (!architecture.ok()) return Cannot(architecture.status().message());
  return architecture;
}

}  // namespace

GgmlType FittingType(GgmlType wanted, int64_t width) {
  const auto fits = [&](GgmlType type) { return width % InfoOf(type).block_size == 0; };
  if (fits(wanted)) return wanted;
  const GgmlType smaller = wanted == GgmlType::kQ4_K ? GgmlType::kQ4_1 : GgmlType::kQ8_0;
  return fits(smaller) ? smaller : GgmlType::kF16;
}

absl::Status CheckGgufModel(const ModelConfig& config, const TokenizerFiles& tokenizer) {
  RETURN_IF_ERROR(ArchitectureThatHolds(config).status());
  return GgufMetadataOfTokenizer(tokenizer, config.vocab_size, config.source).status();
}

absl::StatusOr<GgufModelSummary> WriteGgufModel(const std::string& path, WeightSource& source,
                                                const GgufModelOptions& options) {
  const ModelConfig& config = source.config();
  ASSIGN_OR_RETURN(const std::string architecture, ArchitectureThatHolds(config));
  ASSIGN_OR_RETURN(const GgufMetadataToWrite tokenizer,
                   GgufMetadataOfTokenizer(options.tokenizer, config.vocab_size, config.source));
  RETURN_IF_ERROR(CreateFolders(std::filesystem::path(path).parent_path().string()));
  GgufMetadataToWrite metadata = ModelMetadata(config, architecture, options);
  metadata.Append(tokenizer);

  GgufModelSummary summary;
  std::map<std::string, int> fallbacks;
  CheckpointTensors tensors(source);
  std::vector<GgufTensorToWrite> to_write;
  const auto add = [&](const std::string& name, GgmlType type, const std::vector<int64_t>& shape,
                       std::function<std::string()> bytes) {
    int64_t elements = 1;
    for (int64_t size : shape) elements *= size;
    summary.weight_bytes += GgmlBytes(type, elements);
    ++summary.tensors_by_type[InfoOf(type).name];
    to_write.push_back({name, type, shape, std::move(bytes)});
  };
  if (config.rope_scaling.kind == RopeScaling::Kind::kLlama3) {
    add(kRopeFactorsTensor, GgmlType::kF32, {config.head_dim / 2}, [&config] {
      const std::vector<float> factors =
          Llama3RopeFactors(config.rope_scaling, config.rope_theta, config.head_dim);
      return std::string(reinterpret_cast<const char*>(factors.data()),
                         factors.size() * sizeof(float));
    });
  }
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    const std::string gguf_name = GgufNameOf(expected.name).value();
    GgmlType wanted = GgmlType::kF32;
    if (expected.shape.size() == 2) {
      wanted = options.embedding;
      if (gguf_name != "token_embd.weight" && gguf_name != "output.weight") {
        const auto type =
            options.linears.find(std::string(absl::StripSuffix(expected.name, ".weight")));
        if (type == options.linears.end()) {
          return absl::InvalidArgumentError(absl::StrCat("No GGUF type for ", expected.name));
        }
        wanted = type->second;
      }
    }
    const GgmlType type = FittingType(wanted, expected.shape.back());
    if (type != wanted) {
      ++fallbacks[absl::StrCat(InfoOf(type).name, " instead of ", InfoOf(wanted).name, ": rows of ",
                               expected.shape.back(),
                               " weights are not a whole number of blocks of ",
                               InfoOf(wanted).block_size)];
    }
    const bool reordered = HasReorderedRows(architecture, expected.name);
    add(gguf_name, type, expected.shape,
        [&tensors, name = expected.name, type, head_dim = config.head_dim, reordered] {
          return Encode(tensors.Get(name), type, head_dim, reordered);
        });
  }
  for (const auto& [what, count] : fallbacks) {
    summary.notes.push_back(absl::StrCat("GGUF: ", count, " tensors are stored as ", what));
  }
  RETURN_IF_ERROR(WriteGguf(path, metadata, to_write));
  return summary;
}

}  // namespace qpruner::engine
