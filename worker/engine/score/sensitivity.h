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

// sensitivities[group][format]; exactly 0 where the format changes no weight. By MeasureVariants,
// whose memory and `on_progress` it has.
std::vector<std::vector<double>> MeasureSensitivity(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized = RoundingToNearest(),
    const std::function<void(double fraction)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_SENSITIVITY_H_
