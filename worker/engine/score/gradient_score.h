// First-order estimate of what quantizing a group costs (AutoQuantize of NVIDIA ModelOpt).
//
// For a linear Y = X W^T and its quantized weight Q(W): dY = X (Q(W) - W)^T, and the score is the
// sum over all entries of (dL/dY * dY)^2, with L the summed cross entropy of the samples. Half of
// it per token is what the diagonal of the empirical Fisher information of Y predicts for the KL
// divergence; it is given in that scale, so that it can be read beside the measured sensitivity.
#ifndef QPRUNER_WORKER_ENGINE_SCORE_GRADIENT_SCORE_H_
#define QPRUNER_WORKER_ENGINE_SCORE_GRADIENT_SCORE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/score/search_groups.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// The linear's weight as it would be computed with after storage in `format`: same shape, dtype and
// device as `weight`.
using QuantizedWeight = std::function<at::Tensor(int64_t block, LinearKind kind,
                                                 const at::Tensor& weight, const Format& format)>;

// Round-to-nearest by quantize/format.h.
at::Tensor RoundToNearest(const at::Tensor& weight, const Format& format);
QuantizedWeight RoundingToNearest();

// scores[group][format], nats a token. One block on the device at a time.
std::vector<std::vector<double>> ScoreByGradient(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized = RoundingToNearest(),
    const std::function<void(double fraction)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_GRADIENT_SCORE_H_
