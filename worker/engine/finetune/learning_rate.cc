#include "worker/engine/finetune/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qpruner::engine {

double LearningRate(const LearningRateOptions& options, int64_t step) {
  if (step < options.warmup_steps) {
    return options.peak * static_cast<double>(step) /
           static_cast<double>(std::max<int64_t>(1, options.warmup_steps));
  }
  const double progress =
      static_cast<double>(step - options.warmup_steps) /
      static_cast<double>(std::max<int64_t>(1, options.steps - options.warmup_steps));
  switch (options.schedule) {
    case LearningRateSchedule::kConstant:
      return options.peak;
    case LearningRateSchedule::kLinear:
      return options.peak * std::max(0.0, 1 - progress);
    case LearningRateSchedule::kCosine:
      break;
  }
  return options.peak * std::max(0.0, 0.5 * (1 + std::cos(std::numbers::pi * progress)));
}

}  // namespace qpruner::engine
