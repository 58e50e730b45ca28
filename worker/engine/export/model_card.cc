#include "worker/engine/export/model_card.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace qpruner::engine {
namespace {

// Free text as part of a line: no line breaks, nothing that Markdown or a table takes as its own.
std::string Inline(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\n", " "},
                                    {"\r", " "},
                                    {"\\", "\\\\"},
                                    {"|", "\\|"},
                                    {"<", "&lt;"},
                                    {"`", "\\`"},
                                    {"[", "\\["},
                                    {"*", "\\*"}});
}

// A JSON string is a YAML string.
std::string YamlString(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string RenderModelCard(const ModelCard& card) {
  std::string text = absl::StrCat("---\nlibrary_name: ", card.gguf ? "gguf" : "transformers",
                                  "\npipeline_tag: text-generation\n");
  if (!card.base_model.empty()) {
    absl::StrAppend(&text, "source_model: ", YamlString(card.base_model), "\n");
  }
  absl::StrAppend(&text, "tags:\n- qpruner\n- pruned\n- quantized\n---\n\n# Compressed model\n\n",
                  "Made by QPruner: structured pruning, a storage precision for each layer found ",
                  "by search, recovery by low-rank fine-tuning.\n\n");
  for (const auto& [label, value] :
       {std::pair("From", &card.base_model), std::pair("Pruning", &card.pruning),
        std::pair("Quantization", &card.quantization), std::pair("Fine-tuning", &card.fine_tuning),
        std::pair("Evaluation", &card.evaluation)}) {
    if (!value->empty()) absl::StrAppend(&text, "- **", label, "**: ", Inline(*value), "\n");
  }
  if (!card.rows.empty()) {
    absl::StrAppend(&text,
                    "\n| model | weight bytes | bits a weight | perplexity | KL to the original |\n"
                    "|---|---:|---:|---:|---:|\n");
    for (const ModelCardRow& row : card.rows) {
      absl::StrAppend(
          &text, "| ", Inline(row.label), " | ", row.weight_bytes, " | ",
          absl::StrFormat("%.3f | %.4f | ", row.average_bits, row.perplexity),
          row.kl_divergence.has_value() ? absl::StrFormat("%.5f", *row.kl_divergence) : "", " |\n");
    }
    absl::StrAppend(
        &text,
        card.gguf
            ? "\nWeight bytes of the last row are those of the file; of the others, those of the "
              "packed weights. "
            : "\nWeight bytes are those of the packed weights in `quantized/`. ",
        "Bits a weight are over the linears of the blocks, scales included; embedding, head, "
        "norms and biases do not count.\n");
  }
  if (!card.notes.empty()) absl::StrAppend(&text, "\n");
  for (const std::string& note : card.notes) absl::StrAppend(&text, "- ", Inline(note), "\n");
  if (!card.use.empty()) absl::StrAppend(&text, "\n## Use\n\n", card.use, "\n");
  return text;
}

absl::StatusOr<std::vector<std::string>> WriteModelCard(const std::string& folder,
                                                        const ModelCard& card) {
  RETURN_IF_ERROR(CreateFolders(folder));
  RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(folder, "/README.md"), RenderModelCard(card)));
  return std::vector<std::string>{"README.md"};
}

}  // namespace qpruner::engine
