// README.md of an exported model: what was done, from what, with which scores.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_MODEL_CARD_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_MODEL_CARD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace qpruner::engine {

// One model on the way from the original to the result.
struct ModelCardRow {
  std::string label;  // "quantized", "fine-tuned", ...
  int64_t weight_bytes = 0;
  double average_bits = 0;
  double perplexity = 0;
  // Against the original, nats a token; unset where it was not measured.
  std::optional<double> kl_divergence;
};

// All text is free and becomes one line of Markdown each; an empty one is left out.
struct ModelCard {
  std::string base_model;    // Where the model came from.
  std::string pruning;       // "Taylor (mixed), 25 % of the heads and channels, uniform".
  std::string quantization;  // "int8-row 8, nf4 12 of 20 groups; 5.3 bits a weight on average".
  std::string fine_tuning;   // "LoRA rank 8, LoftQ, 200 steps on ..".
  std::string evaluation;    // What the scores were measured on.
  std::vector<ModelCardRow> rows;
  std::vector<std::string> notes;
  // True: the card of a GGUF file; else of a Hugging Face folder.
  bool gguf = false;
  // Markdown, as it stands: what this folder holds and how to load it.
  std::string use;
};

// The card as Markdown with a YAML front matter.
std::string RenderModelCard(const ModelCard& card);

// Writes README.md into `folder`. Returns its path relative to it.
// Codes: of the failed system call.
absl::StatusOr<std::vector<std::string>> WriteModelCard(const std::string& folder,
                                                        const ModelCard& card);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_MODEL_CARD_H_
