#include "worker/engine/tasks/gguf_export.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "worker/engine/export/gguf_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/tasks/metrics.h"

namespace qpruner::engine {
namespace {

GgmlType TypeOf(v1::Export::GgufType type, GgmlType absent) {
  switch (type) {
    case v1::Export::F32:
      return GgmlType::kF32;
    case v1::Export::F16:
      return GgmlType::kF16;
    case v1::Export::BF16:
      return GgmlType::kBF16;
    case v1::Export::Q8_0:
      return GgmlType::kQ8_0;
    case v1::Export::Q4_0:
      return GgmlType::kQ4_0;
    case v1::Export::Q4_1:
      return GgmlType::kQ4_1;
    case v1::Export::Q5_0:
      return GgmlType::kQ5_0;
    case v1::Export::Q5_1:
      return GgmlType::kQ5_1;
    case v1::Export::Q4_K:
      return GgmlType::kQ4_K;
    case v1::Export::Q6_K:
      return GgmlType::kQ6_K;
    default:
      return absent;
  }
}

}  // namespace

bool WantsExport(const v1::Export& options, v1::Export::Format format) {
  if (options.formats().empty()) return format == v1::Export::HUGGING_FACE;
  return std::any_of(options.formats().begin(), options.formats().end(), [&](int wanted) {
    return wanted == format ||
           (wanted == v1::Export::FORMAT_UNSPECIFIED && format == v1::Export::HUGGING_FACE);
  });
}

std::map<std::string, GgmlType> GgufTypesOf(const v1::Export& options,
                                            const FormatAssignment& assignment) {
  std::map<std::string, GgmlType> types;
  for (const auto& [linear, format] : assignment) {
    const int bits = format.bits;
    types[linear] = bits <= 4   ? TypeOf(options.gguf_four_bit(), GgmlType::kQ4_K)
                    : bits <= 8 ? TypeOf(options.gguf_eight_bit(), GgmlType::kQ8_0)
                                : TypeOf(options.gguf_sixteen_bit(), GgmlType::kBF16);
  }
  return types;
}

absl::StatusOr<GgufExport> ExportGguf(const std::string& folder, const v1::Export& options,
                                      const FormatAssignment& assignment, WeightSource& source,
                                      const std::string& prepared, ModelCard card,
                                      const std::function<TokenMetrics(WeightSource&)>& measure) {
  GgufModelOptions gguf;
  gguf.linears = GgufTypesOf(options, assignment);
  gguf.embedding = TypeOf(options.gguf_embedding(), GgmlType::kBF16);
  ASSIGN_OR_RETURN(gguf.tokenizer, ReadTokenizerFiles(prepared));
  gguf.name = "QPruner compressed model";
  const std::string requantized = absl::StrCat(
      "the ", card.fine_tuning.empty() ? "pruned" : "fine-tuned, merged",
      " weights were quantized once into GGUF's types, not taken from the packed ones: widths of "
      "up "
      "to 4 bits as ",
      InfoOf(TypeOf(options.gguf_four_bit(), GgmlType::kQ4_K)).name, ", of up to 8 as ",
      InfoOf(TypeOf(options.gguf_eight_bit(), GgmlType::kQ8_0)).name, ", of 16 as ",
      InfoOf(TypeOf(options.gguf_sixteen_bit(), GgmlType::kBF16)).name, "; embedding and head as ",
      InfoOf(gguf.embedding).name);
  gguf.description =
      absl::StrCat("Pruning: ", card.pruning, ". Precisions searched as: ", card.quantization,
                   ". In this file ", requantized, ".");
  const std::string path = absl::StrCat(folder, "/model.gguf");
  ASSIGN_OR_RETURN(const GgufModelSummary summary, WriteGgufModel(path, source, gguf));

  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> written, Checkpoint::Open(path));
  const auto as_written = MakeCheckpointSource(written, source.device(), source.dtype());
  GgufExport result;
  result.metrics = CheckpointMetrics(*written, measure(*as_written));
  result.notes = summary.notes;
  card.gguf = true;
  card.use =
      "`model.gguf` holds weights, metadata and tokenizer, for llama.cpp and software built on it. "
      "The scores of the last row are of this file.";
  card.rows.push_back({.label = "model.gguf, as read back",
                       .weight_bytes = result.metrics.weight_bytes(),
                       .average_bits = result.metrics.average_bits(),
                       .perplexity = result.metrics.perplexity(),
                       .kl_divergence = result.metrics.kl_divergence()});
  card.notes.push_back(absl::StrCat("Re-quantization: ", requantized, "."));
  card.notes.push_back(absl::StrCat("Tensors by type: ",
                                    absl::StrJoin(summary.tensors_by_type, ", ",
                                                  [](std::string* out, const auto& entry) {
                                                    absl::StrAppend(out, entry.first, " ",
                                                                    entry.second);
                                                  }),
                                    "."));
  card.notes.insert(card.notes.end(), summary.notes.begin(), summary.notes.end());
  RETURN_IF_ERROR(WriteModelCard(folder, card).status());
  return result;
}

}  // namespace qpruner::engine
