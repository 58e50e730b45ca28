// The learning rate over a training run.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_LEARNING_RATE_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_LEARNING_RATE_H_

#include <cstdint>

namespace qpruner::engine {

// What follows the warm-up. As transformers' get_cosine_schedule_with_warmup,
// get_linear_schedule_with_warmup and get_constant_schedule_with_warmup.
enum class LearningRateSchedule { kCosine, kLinear, kConstant };

struct LearningRateOptions {
  LearningRateSchedule schedule = LearningRateSchedule::kCosine;
  double peak = 1e-3;
  int64_t warmup_steps = 20;  // Linear from 0.
  int64_t steps = 200;        // Where cosine and linear reach 0.
};

// Of the update that follows `step` updates.
double LearningRate(const LearningRateOptions& options, int64_t step);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_LEARNING_RATE_H_
