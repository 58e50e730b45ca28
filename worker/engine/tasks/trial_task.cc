#include "worker/engine/tasks/trial_task.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/prefix_cache.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/tasks/metrics.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/task_use.h"

namespace qpruner::engine {
namespace {

// For each block its formats: with the quantization settings, all that its weights depend on.
std::vector<std::string> BlockNames(const ModelConfig& config, const FormatAssignment& assignment) {
  std::vector<std::string> names;
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    std::string& name = names.emplace_back();
    for (const LinearKind kind : kLinearKinds) {
      absl::StrAppend(&name, FormatName(assignment.at(LinearName(block, kind))), " ");
    }
  }
  return names;
}

}  // namespace

absl::StatusOr<internal::v1::TrialResult> RunTrial(const v1::CompressionSpec& spec,
                                                   const internal::v1::TrialTask& trial,
                                                   const PreparedModel& model, Clock& clock,
                                                   ProgressReporter& progress) {
  const ModelConfig& config = model.source->config();
  ASSIGN_OR_RETURN(FormatAssignment assignment, AssignmentOf(spec, trial.precisions(), config));
  const ModelBytes bytes = CountBytes(config, assignment);
  const std::vector<std::string> blocks = BlockNames(config, assignment);
  const at::ScalarType dtype = EvaluationDTypeOf(spec.evaluation(), model.source->dtype());
  ASSIGN_OR_RETURN(
      const auto quantized,
      QuantizedSource::Create(*model.source, std::move(assignment),
                              trial.measure_on_test() ? QuantizedSource::Keep::kPacked
                                                      : QuantizedSource::Keep::kNothing,
                              model.weights.get()));

  CastSource evaluated(*quantized, dtype);
  const auto measure = [&](const char* name, const ReferenceShare& share, const Phase& phase) {
    const ReferenceStates states = model.States(share, dtype);
    TokenMetrics metrics = Timed(clock, share.batches, [&] {
      const std::vector<at::Tensor> hidden =
          model.prefixes->Forward(evaluated, BatchIds(share.batches),
                                  absl::StrCat(name, " ", c10::toString(dtype), " ",
                                               spec.quantization().SerializeAsString()),
                                  blocks, phase.Blocks(config.num_blocks()));
      return Evaluate(share.batches, hidden, evaluated.Head(), &states);
    });
    if (model.prefixes->reused_blocks() > 0) {
      metrics.seconds = 0;  // Of a part of the work only.
      progress.Log(absl::StrCat("Trial ", trial.index(), ", ", name,
                                " share: ", model.prefixes->reused_blocks(), " of ",
                                config.num_blocks(), " blocks taken from earlier trials"));
    }
    return PackedMetrics(bytes, metrics);
  };
  internal::v1::TrialResult result;
  const double selection_end = trial.measure_on_test() ? 0.35 : 1;
  *result.mutable_selection() =
      measure("selection", model.reference.selection,
              Phase(progress, 0, selection_end, absl::StrCat("measuring trial ", trial.index())));
  if (trial.measure_on_test()) {
    *result.mutable_test() =
        measure("test", model.reference.test,
                Phase(progress, selection_end, 1,
                      absl::StrCat("measuring trial ", trial.index(), " on the test share")));
  }
  return result;
}

}  // namespace qpruner::engine
