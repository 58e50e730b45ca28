// What PREPARE's scores say: the search space for the server, and report/scores.json for people.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_SCORE_REPORT_H_
#define QPRUNER_WORKER_ENGINE_TASKS_SCORE_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "qpruner/internal/v1/task.pb.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/prune/width_search.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/score/mutual_information.h"
#include "worker/engine/score/search_groups.h"

namespace qpruner::engine {

// The scores of every group of linears.
struct GroupScores {
  std::vector<LinearGroup> groups;
  std::vector<Format> formats;                       // The candidates, by growing bits.
  std::vector<std::vector<double>> sensitivities;    // [group][format], nats a token.
  std::vector<std::vector<double>> gradient_scores;  // [group][format], nats a token.
  MutualInformationScores information;
};

// Sets the groups and the fixed bytes of `result`, and adds the notes that the scores deserve.
void DescribeSearchSpace(const ModelConfig& config, const GroupScores& scores,
                         internal::v1::PrepareResult& result);

// What kept and dropped groups scored: {"blocks": [..]}.
nlohmann::ordered_json PruningReport(const std::vector<BlockImportance>& importance,
                                     const PruningPlan& plan);

// Every plan that was tried, in the order of outcome.candidates; one number a block.
nlohmann::ordered_json WidthSearchReport(const WidthSearchOutcome& outcome);

// How the calibration samples were drawn.
struct CalibrationUse {
  int64_t samples = 0;
  int64_t tokens_each = 0;
  int64_t seed = 0;
};

// Writes `path` (its folder is made). `pruning` is PruningReport's, with WidthSearchReport's as
// "width_search" if there was one; null without pruning.
absl::Status WriteScoreReport(const std::string& path, const CalibrationUse& calibration,
                              const GroupScores& scores, const ModelConfig& config,
                              nlohmann::ordered_json pruning);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_SCORE_REPORT_H_
