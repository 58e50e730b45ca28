#include "worker/engine/tasks/job_texts.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/tasks/source_uri.h"
#include "worker/engine/texts/dataset.h"
#include "worker/engine/texts/instructions.h"

namespace qpruner::engine {
namespace {

// Fewer predictions than this say little about a model.
constexpr int64_t kMinEvaluationTokens = 256;
// Longer documents of the fine-tuning share are cut here; training joins and cuts them anyway.
constexpr int64_t kLongestDocument = 1 << 20;

// The texts of a job, each file opened once.
class TextLibrary {
 public:
  TextLibrary(const Tokenizer& tokenizer, std::string builtin_dir, int64_t window_length)
      : tokenizer_(tokenizer),
        builtin_dir_(std::move(builtin_dir)),
        window_length_(window_length) {}

  absl::StatusOr<Dataset*> Open(const v1::TextDataset& dataset) {
    TextSource source;
    ASSIGN_OR_RETURN(source.path, ResolveText(dataset.uri(), builtin_dir_));
    if (dataset.has_document_separator()) source.document_separator = dataset.document_separator();
    source.window_length = window_length_;
    auto& opened = datasets_[{source.path, source.document_separator}];
    if (opened == nullptr) {
      ASSIGN_OR_RETURN(opened, Dataset::Open(source, tokenizer_));
    }
    return opened.get();
  }

 private:
  const Tokenizer& tokenizer_;
  const std::string builtin_dir_;
  const int64_t window_length_;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Dataset>> datasets_;
};

// Adds the name of the spec's field to an error about it.
absl::Status About(absl::string_view field, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(field, ": ", absl::string_view(status.message())));
}

absl::StatusOr<std::vector<TrainingSequence>> ReadTrainingText(const v1::FineTune& fine_tune,
                                                               TextLibrary& library) {
  const TrainerOptions trainer = TrainerOptionsOf(fine_tune);
  ASSIGN_OR_RETURN(Dataset* const dataset, library.Open(fine_tune.dataset()));
  ASSIGN_OR_RETURN(
      std::vector<TokenIds> documents,
      dataset->Documents(Share::kFineTune,
                         fine_tune.packing() ? kLongestDocument : trainer.sequence_length,
                         trainer.steps() * trainer.batch_size * trainer.sequence_length));
  std::vector<TrainingSequence> sequences;
  for (TokenIds& ids : documents) sequences.push_back({.ids = std::move(ids)});
  return sequences;
}

absl::StatusOr<std::vector<TrainingSequence>> ReadTrainingInstructions(
    const v1::FineTune& fine_tune, const Tokenizer& tokenizer, std::optional<int32_t> eos,
    const std::string& builtin_dir) {
  const TrainerOptions trainer = TrainerOptionsOf(fine_tune);
  ASSIGN_OR_RETURN(const std::string path, ResolveText(fine_tune.dataset().uri(), builtin_dir));
  ASSIGN_OR_RETURN(const std::vector<Instruction> instructions, ReadInstructions(path));
  ASSIGN_OR_RETURN(
      std::vector<InstructionTokens> encoded,
      EncodeInstructions(tokenizer, instructions, Share::kFineTune, eos, trainer.sequence_length,
                         trainer.steps() * trainer.batch_size));
  std::vector<TrainingSequence> sequences;
  for (InstructionTokens& tokens : encoded) {
    sequences.push_back({.ids = std::move(tokens.ids), .masked = tokens.prompt_length});
  }
  return sequences;
}

}  // namespace

absl::StatusOr<JobTexts> ReadJobTexts(const v1::CompressionSpec& spec, const TextLimits& limits,
                                      const Tokenizer& tokenizer, std::optional<int32_t> eos,
                                      const std::string& builtin_dir) {
  TextLibrary library(tokenizer, builtin_dir, limits.evaluation_length);
  JobTexts texts;
  auto calibration = library.Open(spec.calibration().dataset());
  if (!calibration.ok()) return About("calibration", calibration.status());
  auto samples = (*calibration)
                     ->Samples(Share::kCalibration, limits.calibration_samples,
                               limits.calibration_length, limits.calibration_seed);
  if (!samples.ok()) return About("calibration", samples.status());
  texts.calibration = *std::move(samples);

  auto evaluation = library.Open(spec.evaluation().dataset());
  if (!evaluation.ok()) return About("evaluation", evaluation.status());
  const auto windows = [&](Share share, int64_t tokens) {
    return (*evaluation)
        ->Windows(share, limits.evaluation_length, limits.evaluation_stride, tokens,
                  std::min(tokens, kMinEvaluationTokens));
  };
  auto selection = windows(Share::kSelection, limits.selection_tokens);
  if (!selection.ok()) return About("evaluation", selection.status());
  texts.selection = *std::move(selection);
  auto test = windows(Share::kTest, limits.test_tokens);
  if (!test.ok()) return About("evaluation", test.status());
  texts.test = *std::move(test);

  if (spec.fine_tune().steps() > 0) {
    auto fine_tune = spec.fine_tune().data_format() == v1::FineTune::ALPACA
                         ? ReadTrainingInstructions(spec.fine_tune(), tokenizer, eos, builtin_dir)
                         : ReadTrainingText(spec.fine_tune(), library);
    if (!fine_tune.ok()) return About("fine_tune", fine_tune.status());
    texts.fine_tune = *std::move(fine_tune);
  }
  return texts;
}

}  // namespace qpruner::engine
