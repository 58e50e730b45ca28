#include "worker/engine/tasks/trial_task.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/spec_mapping.h"

namespace qpruner::engine {

absl::StatusOr<internal::v1::TrialResult> RunTrial(const v1::CompressionSpec& spec,
                                                   const internal::v1::TrialTask& trial,
                                                   const PreparedModel& model,
                                                   ProgressReporter& progress) {
  const ModelConfig& config = model.source->config();
  ASSIGN_OR_RETURN(FormatAssignment assignment, AssignmentOf(spec, trial.precisions(), config));
  const ModelBytes bytes = CountBytes(config, assignment);
  ASSIGN_OR_RETURN(
      const auto quantized,
      QuantizedSource::Create(*model.source, std::move(assignment),
                              trial.measure_on_test() ? QuantizedSource::Keep::kPacked
                                                      : QuantizedSource::Keep::kNothing,
                              model.weights.get()));

  const auto measure = [&](const ReferenceShare& share, const Phase& phase) {
    const ReferenceStates states = model.States(share);
    return PackedMetrics(bytes, EvaluateModel(*quantized, share.batches, &states,
                                              phase.Blocks(config.num_blocks())));
  };
  internal::v1::TrialResult result;
  const double selection_end = trial.measure_on_test() ? 0.35 : 1;
  *result.mutable_selection() =
      measure(model.reference.selection,
              Phase(progress, 0, selection_end, absl::StrCat("measuring trial ", trial.index())));
  if (trial.measure_on_test()) {
    *result.mutable_test() =
        measure(model.reference.test,
                Phase(progress, selection_end, 1,
                      absl::StrCat("measuring trial ", trial.index(), " on the test share")));
  }
  return result;
}

}  // namespace qpruner::engine
