// The job's spec in the engine's terms. Its defaults must be filled in (proto/spec_defaults.h).
#ifndef QPRUNER_WORKER_ENGINE_TASKS_SPEC_MAPPING_H_
#define QPRUNER_WORKER_ENGINE_TASKS_SPEC_MAPPING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/repeated_ptr_field.h"
#include "qpruner/v1/job.pb.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/distillation.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/quantize/gptq.h"
#include "worker/engine/score/search_groups.h"

namespace qpruner::engine {

// Lowers the sequence lengths of `spec` to what a model with `positions` can see. Returns a note
// for each one that is used. Every task does the same; PREPARE tells of it.
std::vector<std::string> LowerToPositions(int64_t positions, v1::CompressionSpec& spec);

// How much of which share is used.
struct TextLimits {
  int64_t calibration_samples = 0;
  int64_t calibration_length = 0;
  int64_t calibration_seed = 0;
  int64_t evaluation_length = 0;
  int64_t evaluation_stride = 0;
  int64_t selection_tokens = 0;
  int64_t test_tokens = 0;
};
TextLimits TextLimitsOf(const v1::CompressionSpec& spec);

// What evaluation computes in; `usual` where the spec leaves it to the device.
at::ScalarType EvaluationDTypeOf(const v1::Evaluation& evaluation, at::ScalarType usual);

ImportanceOptions ImportanceOptionsOf(const v1::CompressionSpec& spec);
PruningOptions PruningOptionsOf(const v1::Pruning& pruning);
SearchGranularity GranularityOf(const v1::Search& search);

// The format behind a width. INVALID_ARGUMENT lists the widths there are.
absl::StatusOr<Format> FormatOf(const v1::Quantization& quantization, int bits);
// The candidates by growing bits, each once.
absl::StatusOr<std::vector<Format>> CandidateFormats(const v1::CompressionSpec& spec);
GptqOptions GptqOptionsOf(const v1::Quantization& quantization);
// The format of every linear. INVALID_ARGUMENT: a group is unknown, named twice or missing, or has
// a width that is not there.
absl::StatusOr<FormatAssignment> AssignmentOf(
    const v1::CompressionSpec& spec,
    const google::protobuf::RepeatedPtrField<v1::GroupPrecision>& precisions,
    const ModelConfig& config);
TrainerOptions TrainerOptionsOf(const v1::FineTune& fine_tune);
// What training computes in, where the model's `usual` type is what the device is used to.
at::ScalarType TrainingDTypeOf(const v1::FineTune& fine_tune, at::ScalarType usual);
// Unset: no distillation.
std::optional<DistillationOptions> DistillationOptionsOf(const v1::FineTune& fine_tune);
LoraOptions LoraOptionsOf(const v1::FineTune& fine_tune);
AdapterInit AdapterInitOf(const v1::FineTune& fine_tune);
int LoftqIterationsOf(const v1::FineTune& fine_tune);

at::ScalarType ExportDTypeOf(const v1::Export& options);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_SPEC_MAPPING_H_
