// Mutual information between a layer's output and the model's prediction, QPruner's allocation
// score (arXiv 2412.11629, section 3.2), estimated as its authors' code does.
//
// For each sample: X = the mean of a linear's output over all positions and channels, one scalar;
// Y = the index of the largest entry of the sample's logits, flattened to positions x vocabulary.
// I(X; Y) = sum p(x, y) ln(p(x, y) / (p(x) p(y))) over a 16 x 16 histogram of the pairs, in nats.
//
// With few samples over 256 cells this estimate is biased upwards and noisy. So every score comes
// with a control: the same estimate after Y is shuffled, which is what independence would give. A
// score that does not exceed its control says nothing.
#ifndef QPRUNER_WORKER_ENGINE_SCORE_MUTUAL_INFORMATION_H_
#define QPRUNER_WORKER_ENGINE_SCORE_MUTUAL_INFORMATION_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/engine/model/weights.h"
#include "worker/engine/score/search_groups.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

inline constexpr int kHistogramBins = 16;

// The estimate from pairs (x[i], y[i]); both of the same length, 0 if it is 0. Bins as numpy's
// histogram2d: equal widths between the smallest and the largest value, the last bin closed.
double HistogramMutualInformation(const std::vector<double>& x, const std::vector<double>& y);

struct MutualInformationOptions {
  uint64_t seed = 42;
  int shuffles = 16;  // The control is their mean.
};

struct MutualInformation {
  double nats = 0;
  double control_nats = 0;
};

struct MutualInformationScores {
  // One a group. A group's information is that of its most informative linear: a lower bound of
  // what its linears tell together (their sum would count shared information repeatedly). The
  // control takes the same maximum within each shuffle, so that it carries the same selection bias.
  std::vector<MutualInformation> groups;
  int64_t sample_count = 0;
};

// One forward walk, one block on the device at a time. Padding is left out of means and maxima.
MutualInformationScores MeasureMutualInformation(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const MutualInformationOptions& options = {},
    const std::function<void(double fraction)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_MUTUAL_INFORMATION_H_
