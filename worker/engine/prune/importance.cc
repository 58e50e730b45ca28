#include "worker/engine/prune/importance.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <random>

#include "worker/engine/gradient/backward_walk.h"

namespace qpruner::engine {
namespace {

// The dimension that a channel's weights are added up over.
int64_t WithinChannel(LinearKind kind) { return PrunesRows(kind) ? 1 : 0; }

at::Tensor AbsoluteSums(LinearKind kind, const at::Tensor& salience) {
  return salience.abs().sum(WithinChannel(kind), /*keepdim=*/false, at::kDouble);
}

at::Tensor MagnitudeScores(LinearKind kind, const at::Tensor& weight, ImportanceMethod method) {
  if (method == ImportanceMethod::kL1) return AbsoluteSums(kind, weight);
  return weight.to(at::kDouble).square().sum(WithinChannel(kind)).sqrt();
}

// Accumulates g and a over the batches of a block, then turns them into channel scores.
class TaylorScoring final : public LinearTracing {
 public:
  TaylorScoring(const std::vector<TokenBatch>& batches, int64_t block_count,
                ImportanceMethod method)
      : batches_(batches), method_(method), scores_(block_count) {
    for (const TokenBatch& batch : batches) {
      sample_tokens_.push_back(batch.lengths - 1);
      TORCH_CHECK(sample_tokens_.back().min().item<int64_t>() > 0,
                  "Importance needs samples of at least 2 tokens");
      sample_count_ += batch.ids.size(0);
      token_count_ += sample_tokens_.back().sum().item<int64_t>();
    }
  }

  std::vector<ChannelScores> Finish() && { return std::move(scores_); }

  void EnterBlock(int64_t block, const BlockWeights& weights) override {
    weights_ = weights.weight;
    gradient_ = {};
    fisher_ = {};
  }

  void TakeTraces(int64_t block, int64_t batch, const PerLinear<LinearTrace>& traces) override {
    for (LinearKind kind : kLinearKinds) {
      const at::Tensor x = Wide(traces[kind].input);
      const at::Tensor dy = Wide(traces[kind].output_gradient);
      if (!second_order()) {
        AddProduct(gradient_[kind], dy.flatten(0, 1).t(), x.flatten(0, 1));
        continue;
      }
      // Sample by sample, so that one weight gradient exists at a time.
      for (int64_t sample = 0; sample < x.size(0); ++sample) {
        const at::Tensor gradient = at::matmul(dy[sample].t(), x[sample]);
        if (method_ == ImportanceMethod::kTaylorMixed) Add(gradient_[kind], gradient);
        // Of its mean cross entropy, squared.
        const auto tokens = sample_tokens_[batch][sample].item<double>();
        AddSquare(fisher_[kind], gradient, 1 / (tokens * tokens));
      }
    }
  }

  void LeaveBlock(int64_t block) override {
    for (LinearKind kind : kLinearKinds) {
      const at::Tensor weight = Wide(weights_[kind]);
      at::Tensor salience;
      if (second_order()) {
        salience = weight.square() * fisher_[kind] / static_cast<double>(sample_count_);
      }
      if (method_ != ImportanceMethod::kTaylorSecond) {
        const at::Tensor first = weight * gradient_[kind] / static_cast<double>(token_count_);
        salience = method_ == ImportanceMethod::kTaylorMixed ? first - 0.5 * salience : first;
      }
      at::Tensor score = method_ == ImportanceMethod::kTaylorVector
                             ? salience.sum(WithinChannel(kind), false, at::kDouble).abs()
                             : AbsoluteSums(kind, salience);
      scores_[block][kind] = score.to(at::kCPU);
    }
    weights_ = {};
  }

 private:
  bool second_order() const {
    return method_ == ImportanceMethod::kTaylorSecond || method_ == ImportanceMethod::kTaylorMixed;
  }
  // Sums over thousands of positions are not left to half precision.
  static at::Tensor Wide(const at::Tensor& x) {
    return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  }
  static void AddProduct(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
    if (!sum.defined()) sum = at::zeros({a.size(0), b.size(1)}, a.options());
    sum.addmm_(a, b);
  }
  static void Add(at::Tensor& sum, const at::Tensor& term) {
    if (!sum.defined()) sum = at::zeros_like(term);
    sum.add_(term);
  }
  static void AddSquare(at::Tensor& sum, const at::Tensor& term, double factor) {
    if (!sum.defined()) sum = at::zeros_like(term);
    sum.addcmul_(term, term, factor);
  }

  const std::vector<TokenBatch>& batches_;
  const ImportanceMethod method_;
  std::vector<at::Tensor> sample_tokens_;  // [batch]: targets of each sample
  int64_t sample_count_ = 0;
  int64_t token_count_ = 0;
  PerLinear<at::Tensor> weights_;
  PerLinear<at::Tensor> gradient_;  // Of the summed cross entropy over all samples.
  PerLinear<at::Tensor> fisher_;    // Sum over samples of g_j^2.
  std::vector<ChannelScores> scores_;
};

BlockImportance RandomImportance(const BlockShape& shape, std::mt19937_64& generator) {
  const auto draw = [&](int64_t count) {
    at::Tensor scores = at::empty({count}, at::kDouble);
    double* values = scores.data_ptr<double>();
    // 53 bits, by hand: standard distributions differ between libraries.
    for (int64_t i = 0; i < count; ++i) {
      values[i] = static_cast<double>(generator() >> 11) * 0x1.0p-53;
    }
    return scores;
  };
  BlockImportance importance;
  importance.kv_heads = draw(shape.num_kv_heads);
  importance.mlp_channels = draw(shape.intermediate_size);
  return importance;
}

// scores [linear, channel] -> [channel]
at::Tensor Reduce(const at::Tensor& scores, GroupReduction reduction) {
  switch (reduction) {
    case GroupReduction::kSum:
      return scores.sum(0);
    case GroupReduction::kMean:
      return scores.mean(0);
    case GroupReduction::kMax:
      return std::get<0>(scores.max(0));
    case GroupReduction::kProduct:
      return scores.prod(0);
    case GroupReduction::kFirst:
      return scores[0];
  }
  TORCH_CHECK(false, "Unknown group reduction");
}

}  // namespace

bool PrunesRows(LinearKind kind) {
  return kind != LinearKind::kOutput && kind != LinearKind::kDown;
}

bool NeedsGradients(ImportanceMethod method) {
  switch (method) {
    case ImportanceMethod::kL1:
    case ImportanceMethod::kL2:
    case ImportanceMethod::kRandom:
      return false;
    default:
      return true;
  }
}

std::vector<ChannelScores> ScoreChannels(WeightSource& source,
                                         const std::vector<TokenBatch>& batches,
                                         ImportanceMethod method,
                                         const std::function<void(double)>& on_progress) {
  TORCH_CHECK(method != ImportanceMethod::kRandom, "Random importance has no channel scores");
  const int64_t block_count = source.config().num_blocks();
  if (NeedsGradients(method)) {
    TORCH_CHECK(!batches.empty(), "Taylor importance needs calibration samples");
    TaylorScoring scoring(batches, block_count, method);
    WalkBackward(source, batches, scoring, [&](int64_t done, int64_t of) {
      if (on_progress) on_progress(static_cast<double>(done) / static_cast<double>(of));
    });
    return std::move(scoring).Finish();
  }
  at::NoGradGuard no_grad;
  std::vector<ChannelScores> scores(block_count);
  for (int64_t block = 0; block < block_count; ++block) {
    const BlockWeights weights = source.Block(block);
    for (LinearKind kind : kLinearKinds) {
      scores[block][kind] = MagnitudeScores(kind, weights.weight[kind], method).to(at::kCPU);
    }
    if (on_progress) on_progress(static_cast<double>(block + 1) / static_cast<double>(block_count));
  }
  return scores;
}

BlockImportance ReduceToGroups(const ModelConfig& config, const BlockShape& shape,
                               const ChannelScores& scores, GroupReduction reduction,
                               HeadFold fold_kind) {
  const int64_t kv_heads = shape.num_kv_heads;
  const int64_t readers = shape.num_heads / kv_heads;
  const auto fold = [&](LinearKind kind) {
    if (fold_kind == HeadFold::kLlmPruner) {
      return scores[kind].view({readers, kv_heads * config.head_dim}).sum(0);
    }
    return scores[kind].view({kv_heads, readers, config.head_dim}).sum(1).flatten();
  };
  const at::Tensor attention =
      Reduce(at::stack({fold(LinearKind::kQuery), scores[LinearKind::kKey],
                        scores[LinearKind::kValue], fold(LinearKind::kOutput)}),
             reduction);
  BlockImportance importance;
  importance.kv_heads = attention.view({kv_heads, config.head_dim}).sum(1);
  importance.mlp_channels = Reduce(
      at::stack({scores[LinearKind::kGate], scores[LinearKind::kUp], scores[LinearKind::kDown]}),
      reduction);
  return importance;
}

std::vector<BlockImportance> ScoreGroups(WeightSource& source,
                                         const std::vector<TokenBatch>& batches,
                                         const ImportanceOptions& options,
                                         const std::function<void(double)>& on_progress) {
  const ModelConfig& config = source.config();
  std::vector<BlockImportance> importance;
  if (options.method == ImportanceMethod::kRandom) {
    std::mt19937_64 generator(options.seed);
    for (const BlockShape& shape : config.blocks) {
      importance.push_back(RandomImportance(shape, generator));
    }
    if (on_progress) on_progress(1);
    return importance;
  }
  const std::vector<ChannelScores> scores =
      ScoreChannels(source, batches, options.method, on_progress);
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    importance.push_back(ReduceToGroups(config, config.blocks[block], scores[block],
                                        options.reduction, options.fold));
  }
  return importance;
}

}  // namespace qpruner::engine
