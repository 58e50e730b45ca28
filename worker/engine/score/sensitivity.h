// Measured cost of quantizing one group alone: mean KL(model || model with only this group in this
// format), in nats a token, over all positions that have a target.
#ifndef QPRUNER_WORKER_ENGINE_SCORE_SENSITIVITY_H_
#define QPRUNER_WORKER_ENGINE_SCORE_SENSITIVITY_H_

#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/score/gradient_score.h"
#include "worker/engine/score/search_groups.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// For a measurement that may be interrupted.
struct SensitivityProgress {
  // Of the groups of the first blocks an earlier run has measured these, rows as in the result;
  // other rows are not looked at.
  int64_t measured_blocks = 0;
  std::vector<std::vector<double>> sensitivities;
  // Called after each block with what is known then, rows of later blocks' groups 0; may be empty.
  std::function<void(int64_t measured_blocks,
                     const std::vector<std::vector<double>>& sensitivities)>
      on_block;
};

// sensitivities[group][format]; exactly 0 where the format changes no weight. By MeasureVariants,
// whose memory and `on_progress` it has. They do not depend on `progress`.
std::vector<std::vector<double>> MeasureSensitivity(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized = RoundingToNearest(),
    const std::function<void(double fraction)>& on_progress = {},
    const SensitivityProgress& progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_SENSITIVITY_H_
