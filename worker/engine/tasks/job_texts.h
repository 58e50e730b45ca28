// The text that a job works on, as token ids.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_JOB_TEXTS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_JOB_TEXTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/finetune/training_text.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

struct JobTexts {
  std::vector<TokenIds> calibration;
  std::vector<Window> selection;
  std::vector<Window> test;
  std::vector<TrainingSequence> fine_tune;  // As in Reference; empty without fine-tuning.
};

// Reads the shares that `spec` names, as much of them as `limits` say. INVALID_ARGUMENT, NOT_FOUND:
// the field of the spec, and what is wrong with its text. `eos` ends an instruction's output.
absl::StatusOr<JobTexts> ReadJobTexts(const v1::CompressionSpec& spec, const TextLimits& limits,
                                      const Tokenizer& tokenizer, std::optional<int32_t> eos,
                                      const std::string& builtin_dir);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_JOB_TEXTS_H_
