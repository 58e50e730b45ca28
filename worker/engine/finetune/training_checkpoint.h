// A training state as a file: what an interrupted run goes on from, with the same result as if it
// had never stopped.
//
// One safetensors file, all float32:
//
//   adapter.N, best.N            the parameters in the order of TrainedParameters
//   optimizer.mean.N,
//   optimizer.square_mean.N      AdamW's moments, the same order; absent before a step
//
// and in its metadata "format" and "state", a JSON object with the numbers. Everything else that
// training depends on (text, options, base) is a function of the job.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_CHECKPOINT_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_CHECKPOINT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/finetune/trainer.h"

namespace qpruner::engine {

// Durably; `path` holds the whole file or what it held before.
absl::Status WriteTrainingCheckpoint(const std::string& path, const TrainingState& state);

// `start` is the state that the run began with (StartTraining): it says which linears are adapted,
// with which rank and alpha, and on which device the tensors belong. INVALID_ARGUMENT: not such a
// file, or one of another run; says what does not fit. NOT_FOUND.
absl::StatusOr<TrainingState> ReadTrainingCheckpoint(const std::string& path,
                                                     const TrainingState& start);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_CHECKPOINT_H_
