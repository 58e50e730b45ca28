// What an attempt at PREPARE leaves for the next one, should it end early: files that are told as
// checkpoints (ProgressReporter::Checkpoint), and what the next attempt takes over from them
// (docs/adr/0027-checkpoints-of-prepare.md).
//
// Besides outputs that are finished:
//
//   checkpoint/pruned.safetensors, measured.safetensors
//       a PrepareState: of the model that was pruned and written, of the one that was also measured
//   checkpoint/sensitivities-N.safetensors, scores.safetensors
//       SavedScores: sensitivities of the first N blocks' groups; all, with the gradient scores
//
// All carry in their metadata the PrepareFingerprint of the work that they belong to.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_PREPARE_CHECKPOINT_H_
#define QPRUNER_WORKER_ENGINE_TASKS_PREPARE_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/evaluate/choice_task.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/tasks/job_texts.h"
#include "worker/engine/tasks/progress.h"

namespace qpruner::engine {

// Tells apart what PREPARE works on: spec, model and texts, which a branch of a hub or a file://
// URI may bring otherwise the next time. Of the model: its shape, and some bytes of each tensor.
// Not the limits: they say how the work is done, and the next attempt may have less memory.
std::string PrepareFingerprint(const v1::CompressionSpec& spec, const Checkpoint& model,
                               const JobTexts& texts, const std::vector<ChoiceTask>& tasks);

// How far the model is.
enum class PrepareStage {
  kPruned,    // Written, with its reference.
  kMeasured,  // Measured as well.
};

// What later stages need of those that are done, besides the outputs.
struct PrepareState {
  PrepareStage stage = PrepareStage::kPruned;
  // As far as it is known.
  internal::v1::PrepareResult result;
  // PruningReport's; null without pruning.
  nlohmann::ordered_json pruning = nullptr;
};

// Scores of groups of linears, [group][format].
struct SavedScores {
  // Whose groups' sensitivities are there; rows of others are 0.
  int64_t measured_blocks = 0;
  std::vector<std::vector<double>> sensitivities;
  // Empty until all sensitivities are there.
  std::vector<std::vector<double>> gradient_scores;
};

// Of one attempt. Its calls come in the order of the stages. What cannot be saved is logged: it
// costs a later attempt time, not its result.
class PrepareCheckpoint {
 public:
  // `progress` outlives it.
  PrepareCheckpoint(std::string input_dir, std::string output_dir, std::string fingerprint,
                    ProgressReporter& progress);

  // What an earlier attempt has left; its outputs of then are in the output folder afterwards.
  // NOT_FOUND: there is no checkpoint. INVALID_ARGUMENT and other codes: it cannot be used, and
  // the output folder is as it was.
  absl::StatusOr<PrepareState> TakeState();
  // Gives up what TakeState has brought: it turned out to be of no use.
  void Forget();
  // The same for one more output, if the state was of use, which `check` looks at where it lies
  // then. NOT_FOUND: the earlier attempt had not come so far. Other codes, `check`'s among them: it
  // is not in the output folder.
  absl::Status TakeOutput(const std::string& path, const std::function<absl::Status()>& check);
  // NOT_FOUND: there are none. INVALID_ARGUMENT: not such a file, or of other numbers of groups,
  // formats and blocks.
  absl::StatusOr<SavedScores> TakeScores(size_t groups, size_t formats, int64_t blocks);

  // Each makes a checkpoint. With all that lies in the output folder now.
  void Save(const PrepareState& state);
  // With one more output.
  void AddOutput(const std::string& path);
  void SaveScores(const SavedScores& scores);

 private:
  std::string InputPath(const std::string& path) const;
  std::string OutputPath(const std::string& path) const;
  absl::StatusOr<PrepareState> ReadState(const std::string& path,
                                         std::map<std::string, int64_t>& outputs) const;
  // Puts an input into the output folder.
  absl::Status Bring(const std::string& from, const std::string& path);
  void Tell();

  const std::string input_dir_;
  const std::string output_dir_;
  const std::string fingerprint_;
  ProgressReporter& progress_;
  // The state of an earlier attempt was of use. Without it the rest that it has left is of other
  // work, or not to be trusted.
  bool goes_on_ = false;
  // Of the checkpoint that would be told now; empty without one.
  std::string state_path_;
  std::string scores_path_;
  std::vector<std::string> outputs_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_PREPARE_CHECKPOINT_H_
