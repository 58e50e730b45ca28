#include "worker/engine/texts/instructions.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/foreign_file.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;
// With fewer, rounding down leaves a share without one (see Dataset).
constexpr size_t kMinInstructions = 10;

constexpr char kIntroductionWithInput[] =
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.";
constexpr char kIntroduction[] =
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.";

// A member that must be a string.
absl::StatusOr<std::string> StringOf(const nlohmann::json& entry, const char* name, bool required) {
  const auto found = entry.find(name);
  if (found == entry.end() && !required) return std::string();
  if (found == entry.end() || !found->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" must be a string"));
  }
  return found->get<std::string>();
}

absl::StatusOr<Instruction> ParseInstruction(const nlohmann::json& entry) {
  if (!entry.is_object()) return absl::InvalidArgumentError("must be an object");
  Instruction instruction;
  ASSIGN_OR_RETURN(instruction.instruction, StringOf(entry, "instruction", true));
  ASSIGN_OR_RETURN(instruction.input, StringOf(entry, "input", false));
  ASSIGN_OR_RETURN(instruction.output, StringOf(entry, "output", true));
  return instruction;
}

}  // namespace

absl::StatusOr<std::vector<Instruction>> ReadInstructions(const std::string& path) {
  const auto refused = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a list of instructions: ", path, ": ", why));
  };
  ASSIGN_OR_RETURN(const std::string text, ReadForeignFile(path, kMaxFileBytes));
  const absl::StatusOr<nlohmann::json> list = ParseStrictJson(text);
  if (!list.ok()) return refused(list.status().message());
  if (!list->is_array()) return refused("the file must hold a JSON list");
  std::vector<Instruction> instructions;
  instructions.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    absl::StatusOr<Instruction> instruction = ParseInstruction((*list)[i]);
    if (!instruction.ok()) {
      return refused(absl::StrCat("entry ", i, ": ", instruction.status().message()));
    }
    instructions.push_back(*std::move(instruction));
  }
  if (instructions.size() < kMinInstructions) {
    return refused(absl::StrCat("there are ", instructions.size(), " entries; ", kMinInstructions,
                                " are needed, so that each share has one"));
  }
  return instructions;
}

std::string AlpacaPrompt(absl::string_view instruction, absl::string_view input) {
  if (input.empty()) {
    return absl::StrCat(kIntroduction, "\n\n### Instruction:\n", instruction,
                        "\n\n### Response:\n");
  }
  return absl::StrCat(kIntroductionWithInput, "\n\n### Instruction:\n", instruction,
                      "\n\n### Input:\n", input, "\n\n### Response:\n");
}

absl::StatusOr<InstructionTokens> EncodeInstruction(const Tokenizer& tokenizer,
                                                    const Instruction& instruction,
                                                    std::optional<int32_t> eos,
                                                    int64_t max_length) {
  const std::string prompt = AlpacaPrompt(instruction.instruction, instruction.input);
  const auto limit = static_cast<size_t>(max_length);
  InstructionTokens tokens;
  ASSIGN_OR_RETURN(tokens.ids, tokenizer.EncodeDocument(absl::StrCat(prompt, instruction.output)));
  if (tokens.ids.size() > limit) tokens.ids.resize(limit);
  if (eos && tokens.ids.size() < limit && (tokens.ids.empty() || tokens.ids.back() != *eos)) {
    tokens.ids.push_back(*eos);
  }
  ASSIGN_OR_RETURN(const TokenIds prompt_ids, tokenizer.EncodeDocument(prompt));
  tokens.prompt_length = static_cast<int64_t>(std::min(limit, prompt_ids.size()));
  return tokens;
}

absl::StatusOr<std::vector<InstructionTokens>> EncodeInstructions(
    const Tokenizer& tokenizer, const std::vector<Instruction>& instructions, Share share,
    std::optional<int32_t> eos, int64_t max_length, int64_t max_count) {
  std::vector<InstructionTokens> encoded;
  const auto [begin, end] = ShareRange(share, static_cast<int64_t>(instructions.size()));
  for (int64_t i = begin; i < end && static_cast<int64_t>(encoded.size()) < max_count; ++i) {
    ASSIGN_OR_RETURN(
        InstructionTokens tokens,
        EncodeInstruction(tokenizer, instructions[static_cast<size_t>(i)], eos, max_length));
    if (tokens.prompt_length < static_cast<int64_t>(tokens.ids.size())) {
      encoded.push_back(std::move(tokens));
    }
  }
  if (encoded.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Every prompt of the ", ShareName(share), " share is ", max_length,
                     " tokens or longer: nothing is left of the outputs"));
  }
  return encoded;
}

}  // namespace qpruner::engine
