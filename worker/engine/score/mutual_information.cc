#include "worker/engine/score/mutual_information.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"

namespace qpruner::engine {
namespace {

// Logits alive at a time: 16 MiB in float32, and as much for each temporary.
constexpr int64_t kLogitsPerChunk = int64_t{1} << 22;

// Bin of each value.
std::vector<int> Bins(const std::vector<double>& values) {
  auto [low, high] = std::minmax_element(values.begin(), values.end());
  double first = *low, last = *high;
  if (first == last) {  // As numpy: a range of width 1 around the only value.
    first -= 0.5;
    last += 0.5;
  }
  std::vector<int> bins;
  for (double value : values) {
    const auto bin = static_cast<int>((value - first) / (last - first) * kHistogramBins);
    bins.push_back(std::clamp(bin, 0, kHistogramBins - 1));
  }
  return bins;
}

double BinnedMutualInformation(const std::vector<int>& x, const std::vector<int>& y) {
  const auto count = static_cast<double>(x.size());
  std::array<double, kHistogramBins> px{}, py{};
  std::array<std::array<double, kHistogramBins>, kHistogramBins> pxy{};
  for (size_t i = 0; i < x.size(); ++i) {
    px[x[i]] += 1 / count;
    py[y[i]] += 1 / count;
    pxy[x[i]][y[i]] += 1 / count;
  }
  double nats = 0;
  for (int i = 0; i < kHistogramBins; ++i) {
    for (int j = 0; j < kHistogramBins; ++j) {
      if (pxy[i][j] > 0) nats += pxy[i][j] * std::log(pxy[i][j] / (px[i] * py[j]));
    }
  }
  return nats;
}

// Index of the largest logit of each sample over positions x vocabulary; the first of equal ones.
std::vector<double> LargestLogits(const at::Tensor& hidden, const at::Tensor& head,
                                  const at::Tensor& lengths) {
  const int64_t vocabulary = head.size(0);
  const int64_t chunk = std::max<int64_t>(1, kLogitsPerChunk / vocabulary);
  std::vector<double> indices;
  for (int64_t sample = 0; sample < lengths.size(0); ++sample) {
    const int64_t length = lengths[sample].item<int64_t>();
    double best = -INFINITY;
    int64_t best_index = 0;
    for (int64_t first = 0; first < length; first += chunk) {
      const int64_t count = std::min(chunk, length - first);
      const at::Tensor logits = HeadLogits(hidden[sample].narrow(0, first, count), head).flatten();
      const int64_t index = logits.argmax().item<int64_t>();
      const auto value = logits[index].item<double>();
      if (value > best) {
        best = value;
        best_index = first * vocabulary + index;
      }
    }
    indices.push_back(static_cast<double>(best_index));
  }
  return indices;
}

}  // namespace

double HistogramMutualInformation(const std::vector<double>& x, const std::vector<double>& y) {
  if (x.empty()) return 0;
  return BinnedMutualInformation(Bins(x), Bins(y));
}

MutualInformationScores MeasureMutualInformation(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const MutualInformationOptions& options,
    const std::function<void(double fraction)>& on_progress) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  MutualInformationScores scores;
  int64_t longest = 1;
  HostStore waiting = HostStore::Beside(source.device());
  std::vector<at::Tensor> hidden;
  std::vector<at::Tensor> weights_of_positions;  // [batch, length]: 1 / length, 0 on padding.
  for (const TokenBatch& batch : batches) {
    scores.sample_count += batch.ids.size(0);
    longest = std::max(longest, batch.ids.size(1));
    hidden.push_back(waiting.Keep(Embed(source, batch.ids)));
    at::Tensor weight = at::zeros(batch.ids.sizes(), at::kDouble);
    for (int64_t row = 0; row < batch.ids.size(0); ++row) {
      const int64_t length = batch.lengths[row].item<int64_t>();
      weight[row].narrow(0, 0, length).fill_(1.0 / static_cast<double>(length));
    }
    weights_of_positions.push_back(weight.to(source.device()));
  }
  const RotaryTables rotary = MakeRotaryTables(config, longest, source.device(), source.dtype());

  std::vector<PerLinear<std::vector<double>>> means(config.num_blocks());
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    const BlockWeights weights = source.Block(block);
    for (size_t i = 0; i < batches.size(); ++i) {
      const LinearFunction observed = [&](LinearKind kind, const at::Tensor& x,
                                          const at::Tensor& weight, const at::Tensor& bias) {
        at::Tensor y = PlainLinear(kind, x, weight, bias);
        const at::Tensor mean =
            (y.mean(-1, false, at::kDouble) * weights_of_positions[i]).sum(1).to(at::kCPU);
        const double* values = mean.data_ptr<double>();
        means[block][kind].insert(means[block][kind].end(), values, values + mean.numel());
        return y;
      };
      hidden[i] = waiting.Keep(BlockForward(config, config.blocks[block], weights, rotary,
                                            hidden[i].to(source.device()), observed));
    }
    if (on_progress) {
      on_progress(static_cast<double>(block + 1) / static_cast<double>(config.num_blocks()));
    }
  }

  std::vector<double> largest;
  const at::Tensor head = source.Head();
  const at::Tensor norm = source.FinalNorm();
  for (size_t i = 0; i < batches.size(); ++i) {
    const at::Tensor final_hidden =
        RmsNorm(hidden[i].to(source.device()), norm, config.rms_norm_eps);
    const std::vector<double> of_batch = LargestLogits(final_hidden, head, batches[i].lengths);
    largest.insert(largest.end(), of_batch.begin(), of_batch.end());
  }
  if (scores.sample_count == 0) {
    scores.groups.resize(groups.size());
    return scores;
  }

  const std::vector<int> y = Bins(largest);
  std::vector<std::vector<int>> shuffled(static_cast<size_t>(options.shuffles), y);
  std::mt19937_64 generator(options.seed);
  for (std::vector<int>& values : shuffled) {
    // Fisher-Yates by hand: std::shuffle differs between libraries.
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[generator() % i]);
  }
  for (const LinearGroup& group : groups) {
    MutualInformation& result = scores.groups.emplace_back();
    std::vector<double> control(shuffled.size(), 0);
    for (LinearKind kind : group.linears) {
      const std::vector<int> x = Bins(means[group.block][kind]);
      result.nats = std::max(result.nats, BinnedMutualInformation(x, y));
      for (size_t i = 0; i < shuffled.size(); ++i) {
        control[i] = std::max(control[i], BinnedMutualInformation(x, shuffled[i]));
      }
    }
    for (double nats : control) result.control_nats += nats / static_cast<double>(control.size());
  }
  return scores;
}

}  // namespace qpruner::engine
