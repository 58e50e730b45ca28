// Instruction data: JSON lists of instruction, input and output, shown to the model in the template
// of Stanford Alpaca.
#ifndef QPRUNER_WORKER_ENGINE_TEXTS_INSTRUCTIONS_H_
#define QPRUNER_WORKER_ENGINE_TEXTS_INSTRUCTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/texts/dataset.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

struct Instruction {
  std::string instruction;
  std::string input;  // May be empty.
  std::string output;
};

// Reads a JSON list of objects with the strings "instruction", "output" and, optionally, "input";
// other members are passed over. INVALID_ARGUMENT: too large, not JSON, not such a list (names the
// entry), or too few entries to give every share one. NOT_FOUND.
absl::StatusOr<std::vector<Instruction>> ReadInstructions(const std::string& path);

// What comes before the output: the instruction and, if there is one, the input, each under its
// heading.
std::string AlpacaPrompt(absl::string_view instruction, absl::string_view input);

struct InstructionTokens {
  TokenIds ids;               // bos, prompt, output and eos.
  int64_t prompt_length = 0;  // Tokens of bos and prompt: not to be learnt.
};

// As LLM-Pruner's post_training.py: prompt and output are tokenized as one text, cut to
// `max_length`, and end with `eos` where there is room; the prompt's length is that of its own
// tokenization.
absl::StatusOr<InstructionTokens> EncodeInstruction(const Tokenizer& tokenizer,
                                                    const Instruction& instruction,
                                                    std::optional<int32_t> eos, int64_t max_length);

// The instructions of one share, encoded, in order; those whose output is cut away are passed over.
// At most `max_count`.
absl::StatusOr<std::vector<InstructionTokens>> EncodeInstructions(
    const Tokenizer& tokenizer, const std::vector<Instruction>& instructions, Share share,
    std::optional<int32_t> eos, int64_t max_length, int64_t max_count);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TEXTS_INSTRUCTIONS_H_
