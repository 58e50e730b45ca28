// Loss and gradients of an adapter on a frozen base, resident or streamed (training_plan.h).
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_LORA_GRADIENTS_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_LORA_GRADIENTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "worker/engine/finetune/adapted_block.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/finetune/training_objective.h"
#include "worker/engine/finetune/training_plan.h"
#include "worker/engine/gradient/backward_walk.h"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// A and B of each adapted linear of each block: [block 0 q.A, q.B, k.A, ..]. They alias the
// adapter.
std::vector<at::Tensor> TrainedParameters(const LoraAdapter& adapter);

struct LoraGradients {
  double loss = 0;                    // Mean over the tokens of all batches, nats.
  std::vector<at::Tensor> gradients;  // Of that mean, in the order of TrainedParameters.
};

struct DropoutOptions {
  double probability = 0;
  uint64_t seed = 42;
  int64_t step = 0;
};

// Holds what the plan keeps between steps. Not thread-safe. Throws c10::Error as WeightSource.
class LoraGradientComputer {
 public:
  // Computes in `dtype`, whatever `base` gives. `base` must outlive this.
  LoraGradientComputer(WeightSource& base, const TrainingPlan& plan, at::ScalarType dtype);

  // Mean loss of `objective` over the tokens of all `batches` together, and its gradients.
  LoraGradients Gradients(const LoraAdapter& adapter, const std::vector<TrainingBatch>& batches,
                          const TrainingObjective& objective, const DropoutOptions& dropout = {});

  // Summed loss without gradients and without dropout.
  LossSum Loss(const LoraAdapter& adapter, const std::vector<TrainingBatch>& batches,
               const TrainingObjective& objective);

 private:
  struct Pass;

  // The block with the adapter set: kept, or made anew in `streamed_`.
  AdaptedBlock& Enter(const LoraAdapter& adapter, int64_t block);
  at::Tensor Embedded(const TrainingBatch& batch);
  // Loss at the last block's output; its gradient there if `gradient` is not null.
  LossSum AtOutput(const at::Tensor& output, const TrainingBatch& batch,
                   const TrainingObjective& objective, at::Tensor* gradient);
  LossSum RunResident(Pass& pass);
  LossSum RunStreamed(Pass& pass);

  WeightSource& base_;
  const TrainingPlan plan_;
  const at::ScalarType dtype_;
  std::vector<AdaptedBlock> blocks_;      // Resident: all of them.
  std::optional<AdaptedBlock> streamed_;  // Streamed: the one in work.
  std::vector<BlockTape> tapes_;          // Resident: one a block. Streamed: one.
  BlockTape loss_tape_;                   // Of Loss: its shapes are others.
  BackwardBuffers buffers_;
  at::Tensor embedding_, head_, norm_;
  RotaryTables rotary_;
  int64_t rotary_length_ = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_LORA_GRADIENTS_H_
