#include "worker/engine/prune/width_search.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/score/variant_divergence.h"

namespace qpruner::engine {
namespace {

// Numbers of heads that are tried with one shape for all blocks; models have 1 to 8 key/value
// heads, or 32 and more without grouping.
constexpr int64_t kMostHeadCounts = 9;
// Widths that each block's MLP is measured at alone, as shares of it.
constexpr double kWidthShares[] = {0.875, 0.75, 0.625, 0.5, 0.375, 0.25};
// Numbers of heads that each block's attention is measured at alone.
constexpr int64_t kHeadLevels = 4;

// Up to `most` whole numbers from `first` to `last`, evenly spread, both ends included; none if the
// range is empty.
std::vector<int64_t> Spread(int64_t first, int64_t last, int64_t most) {
  std::vector<int64_t> values;
  const int64_t count = std::min(most, last - first + 1);
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(count == 1 ? last : first + i * (last - first) / (count - 1));
  }
  return values;
}

// What is wrong with the ratio or the options, whatever they come to.
absl::Status CheckRequest(const ModelConfig& config, double parameter_ratio,
                          const PruningOptions& options) {
  PruningOptions checked = options;
  checked.ratio = 0.5;  // So that the alignment is checked; no ratio is given.
  RETURN_IF_ERROR(CheckPruning(config, checked));
  if (!(parameter_ratio > 0 && parameter_ratio < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("pruning.parameter_ratio must be in (0, 1), not ", parameter_ratio));
  }
  return absl::OkStatus();
}

// The smallest one ratio for heads and channels that leaves at most `allowed` parameters.
// INVALID_ARGUMENT: there is none.
absl::StatusOr<std::vector<KeptCounts>> PlainPlan(const ModelConfig& config,
                                                  const PruningOptions& options, int64_t allowed) {
  constexpr int kSteps = 1000;
  PruningOptions one_ratio = options;
  one_ratio.selection = PruningSelection::kLocal;
  one_ratio.steps = 1;
  const PruningPlan full = FullPlan(config);
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (int step = 1; step < kSteps; ++step) {
    one_ratio.ratio = static_cast<double>(step) / kSteps;
    std::vector<KeptCounts> counts = CountKept(config, full, {}, one_ratio, 1);
    const int64_t count = ParameterCount(PrunedConfig(config, counts));
    if (count <= allowed) return counts;
    fewest = std::min(fewest, count);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("pruning.parameter_ratio leaves ", allowed,
                   " parameters, but pruning all but one key/value head and ", options.alignment,
                   " MLP channels of every pruned block leaves ", fewest,
                   ": embeddings, head and unpruned blocks stay whole; lower it"));
}

// A search in progress.
class WidthSearch {
 public:
  WidthSearch(WeightSource& source, const std::vector<TokenBatch>& batches,
              const std::vector<BlockImportance>& importance, int64_t allowed,
              const PruningOptions& options, const std::function<void(double)>& on_progress)
      : source_(source),
        config_(source.config()),
        batches_(batches),
        importance_(importance),
        allowed_(allowed),
        options_(options),
        range_(PrunedBlocks(config_, options)),
        full_(FullPlan(config_)),
        on_progress_(on_progress) {}

  absl::StatusOr<WidthSearchOutcome> Run();

 private:
  // All pruned blocks with `heads` key/value heads and `channels` MLP channels.
  std::vector<KeptCounts> Same(int64_t heads, int64_t channels) const;
  int64_t CountOf(const std::vector<KeptCounts>& counts) const {
    return ParameterCount(PrunedConfig(config_, counts));
  }
  // The widest MLP, a multiple of the alignment or as wide as it is, that `heads` heads leave room
  // for; 0: none. Of one shape for all blocks: no wider than the narrowest.
  int64_t WidestMlp(int64_t heads) const;

  void AddSameShapes();
  absl::Status AddPerBlock();
  absl::Status Measure();
  void Add(std::string origin, std::vector<KeptCounts> counts);
  void Report(double fraction) const {
    if (on_progress_) on_progress_(fraction);
  }

  WeightSource& source_;
  const ModelConfig& config_;
  const std::vector<TokenBatch>& batches_;
  const std::vector<BlockImportance>& importance_;
  const int64_t allowed_;
  const PruningOptions& options_;
  const BlockRange range_;
  const PruningPlan full_;
  const std::function<void(double)>& on_progress_;
  WidthSearchOutcome outcome_;
};

std::vector<KeptCounts> WidthSearch::Same(int64_t heads, int64_t channels) const {
  std::vector<KeptCounts> counts;
  for (int64_t block = 0; block < config_.num_blocks(); ++block) {
    const BlockShape& shape = config_.blocks[block];
    if (range_.contains(block)) {
      counts.push_back(
          {std::min(heads, shape.num_kv_heads), std::min(channels, shape.intermediate_size)});
    } else {
      counts.push_back({shape.num_kv_heads, shape.intermediate_size});
    }
  }
  return counts;
}

int64_t WidthSearch::WidestMlp(int64_t heads) const {
  int64_t widest = config_.blocks[range_.first].intermediate_size;
  for (int64_t block = range_.first; block < range_.last; ++block) {
    const int64_t width = config_.blocks[block].intermediate_size;
    widest = options_.layout == PruningLayout::kUniform ? std::min(widest, width)
                                                        : std::max(widest, width);
  }
  if (CountOf(Same(heads, widest)) <= allowed_) return widest;
  // Parameters grow with the width: the largest multiple that is not too many.
  int64_t low = 0, high = widest / options_.alignment;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (CountOf(Same(heads, middle * options_.alignment)) <= allowed_) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * options_.alignment;
}

void WidthSearch::Add(std::string origin, std::vector<KeptCounts> counts) {
  const auto same = [&](const WidthCandidate& other) { return other.counts == counts; };
  std::vector<WidthCandidate>& all = outcome_.candidates;
  if (std::any_of(all.begin(), all.end(), same)) return;
  const int64_t count = CountOf(counts);
  all.push_back({std::move(origin), std::move(counts), count, 0});
}

void WidthSearch::AddSameShapes() {
  int64_t most = std::numeric_limits<int64_t>::max();
  for (int64_t block = range_.first; block < range_.last; ++block) {
    most = std::min(most, config_.blocks[block].num_kv_heads);
  }
  for (const int64_t heads : Spread(1, most, kMostHeadCounts)) {
    const int64_t channels = WidestMlp(heads);
    if (channels == 0) continue;
    Add(absl::StrCat(heads, " of ", most, " key/value heads"), Same(heads, channels));
  }
}

absl::Status WidthSearch::AddPerBlock() {
  // Units are each block's heads and its MLP; choice 0 keeps all.
  std::vector<std::vector<int64_t>> kept, savings;
  std::vector<std::vector<double>> costs;
  std::vector<std::pair<int64_t, bool>> units;  // Block, and whether it is the heads.
  for (int64_t block = range_.first; block < range_.last; ++block) {
    const BlockShape& shape = config_.blocks[block];
    units.emplace_back(block, true);
    std::vector<int64_t>& heads = kept.emplace_back(std::vector{shape.num_kv_heads});
    const std::vector<int64_t> fewer = Spread(1, shape.num_kv_heads - 1, kHeadLevels);
    heads.insert(heads.end(), fewer.rbegin(), fewer.rend());
    units.emplace_back(block, false);
    std::vector<int64_t>& widths = kept.emplace_back(std::vector{shape.intermediate_size});
    for (const double share : kWidthShares) {
      const int64_t width = KeptMlpChannels(shape.intermediate_size, 1 - share, options_.alignment);
      if (width < widths.back()) widths.push_back(width);
    }
  }
  std::map<int64_t, std::vector<size_t>> units_of;
  for (size_t unit = 0; unit < units.size(); ++unit) units_of[units[unit].first].push_back(unit);

  const auto counts_with = [&](size_t unit, int64_t count) {
    std::vector<KeptCounts> counts;
    for (const BlockShape& shape : config_.blocks) {
      counts.push_back({shape.num_kv_heads, shape.intermediate_size});
    }
    const auto [block, heads] = units[unit];
    (heads ? counts[block].kv_heads : counts[block].mlp_channels) = count;
    return counts;
  };
  const int64_t whole = ParameterCount(config_);
  // [unit][choice]: of the unit's block alone.
  std::vector<std::vector<std::pair<BlockShape, BlockPlan>>> variants(units.size());
  for (size_t unit = 0; unit < units.size(); ++unit) {
    savings.emplace_back();
    for (const int64_t count : kept[unit]) {
      const std::vector<KeptCounts> counts = counts_with(unit, count);
      savings[unit].push_back(whole - CountOf(counts));
      const int64_t block = units[unit].first;
      ASSIGN_OR_RETURN(BlockPlan plan,
                       KeepHighest(block, full_.blocks[block], importance_[block], counts[block]));
      variants[unit].emplace_back(PrunedShape(config_.blocks[block], counts[block]),
                                  std::move(plan));
    }
  }
  const VariantMaker narrower = [&](int64_t block, const BlockWeights& weights,
                                    const VariantVisitor& visit) {
    for (const size_t unit : units_of[block]) {
      for (size_t choice = 1; choice < kept[unit].size(); ++choice) {
        const auto& [shape, plan] = variants[unit][choice];
        visit(shape, PruneBlock(config_, config_.blocks[block], weights, plan));
      }
    }
  };
  const auto divergences = MeasureVariants(source_, batches_, narrower,
                                           [&](double fraction) { Report(0.8 * fraction); });
  for (size_t unit = 0; unit < units.size(); ++unit) costs.push_back({0});
  for (const auto& [block, of_block] : units_of) {
    size_t at = 0;
    for (const size_t unit : of_block) {
      for (size_t choice = 1; choice < kept[unit].size(); ++choice) {
        // Fewer groups never cost less; where they seem to, that is noise. A block that overflows
        // is no choice.
        const double divergence = divergences[block][at++];
        costs[unit].push_back(std::isfinite(divergence) ? std::max(costs[unit].back(), divergence)
                                                        : std::numeric_limits<double>::infinity());
      }
    }
  }
  const std::vector<size_t> chosen = CheapestChoices(savings, costs, whole - allowed_);
  if (chosen.empty()) return absl::OkStatus();  // The plain plans go further down.
  std::vector<KeptCounts> counts = counts_with(0, kept[0][0]);
  for (size_t unit = 0; unit < units.size(); ++unit) {
    const auto [block, heads] = units[unit];
    (heads ? counts[block].kv_heads : counts[block].mlp_channels) = kept[unit][chosen[unit]];
  }
  Add("searched per block", std::move(counts));
  return absl::OkStatus();
}

absl::Status WidthSearch::Measure() {
  const bool per_block = options_.layout == PruningLayout::kPerLayer;
  const double from = per_block ? 0.8 : 0;
  const ReferenceStates original{ForwardHidden(source_, BatchIds(batches_)), source_.Head()};
  const double visits = 1 + static_cast<double>(outcome_.candidates.size());
  double done = 1;
  double best = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < outcome_.candidates.size(); ++i) {
    WidthCandidate& candidate = outcome_.candidates[i];
    ASSIGN_OR_RETURN(PruningPlan plan, KeepHighest(full_, importance_, candidate.counts));
    PrunedSource pruned(source_, plan);
    candidate.divergence = EvaluateModel(pruned, batches_, &original).mean_kl();
    // Of equal ones the earlier: the plain plan first.
    if (candidate.divergence < best) {
      best = candidate.divergence;
      outcome_.best = i;
      outcome_.plan = std::move(plan);
    }
    Report(from + (1 - from) * ++done / visits);
  }
  if (!std::isfinite(best)) {
    return absl::InvalidArgumentError(
        "No candidate of the width search has a finite divergence: the model collapses at this "
        "pruning.parameter_ratio; lower it");
  }
  return absl::OkStatus();
}

absl::StatusOr<WidthSearchOutcome> WidthSearch::Run() {
  ASSIGN_OR_RETURN(std::vector<KeptCounts> plain, PlainPlan(config_, options_, allowed_));
  Add("one ratio", std::move(plain));
  AddSameShapes();
  if (options_.layout == PruningLayout::kPerLayer) RETURN_IF_ERROR(AddPerBlock());
  RETURN_IF_ERROR(Measure());
  return std::move(outcome_);
}

}  // namespace

int64_t AllowedParameters(const ModelConfig& config, double parameter_ratio) {
  const auto whole = static_cast<double>(ParameterCount(config));
  return static_cast<int64_t>(std::floor((1 - parameter_ratio) * whole));
}

absl::Status CheckWidthSearch(const ModelConfig& config, double parameter_ratio,
                              const PruningOptions& options) {
  RETURN_IF_ERROR(CheckRequest(config, parameter_ratio, options));
  return PlainPlan(config, options, AllowedParameters(config, parameter_ratio)).status();
}

absl::StatusOr<WidthSearchOutcome> SearchWidths(WeightSource& source,
                                                const std::vector<TokenBatch>& batches,
                                                const std::vector<BlockImportance>& importance,
                                                double parameter_ratio,
                                                const PruningOptions& options,
                                                const std::function<void(double)>& on_progress) {
  at::NoGradGuard no_grad;
  RETURN_IF_ERROR(CheckRequest(source.config(), parameter_ratio, options));
  RETURN_IF_ERROR(
      CheckImportance(source.config(), importance, PrunedBlocks(source.config(), options)));
  return WidthSearch(source, batches, importance,
                     AllowedParameters(source.config(), parameter_ratio), options, on_progress)
      .Run();
}

std::vector<size_t> CheapestChoices(const std::vector<std::vector<int64_t>>& savings,
                                    const std::vector<std::vector<double>>& costs, int64_t needed) {
  constexpr int64_t kSteps = 4000;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const double step = std::max(1.0, static_cast<double>(needed) / kSteps);
  const auto goal = static_cast<int64_t>(std::ceil(static_cast<double>(needed) / step));
  // least[s]: the least cost that saves s steps or more (s = goal: all that is needed).
  std::vector<double> least(goal + 1, kNever);
  least[0] = 0;
  std::vector<std::vector<std::pair<int64_t, size_t>>> taken;  // [unit][s]: from where, which.
  for (size_t unit = 0; unit < savings.size(); ++unit) {
    std::vector<double> next(goal + 1, kNever);
    auto& from = taken.emplace_back(goal + 1, std::pair<int64_t, size_t>{-1, 0});
    for (int64_t s = 0; s <= goal; ++s) {
      if (least[s] == kNever) continue;
      for (size_t choice = 0; choice < savings[unit].size(); ++choice) {
        const auto saved =
            static_cast<int64_t>(std::floor(static_cast<double>(savings[unit][choice]) / step));
        const int64_t to = std::min(goal, s + saved);
        const double cost = least[s] + costs[unit][choice];
        if (cost < next[to]) {
          next[to] = cost;
          from[to] = {s, choice};
        }
      }
    }
    least = std::move(next);
  }
  std::vector<size_t> chosen(savings.size());
  if (least[goal] == kNever) return {};
  int64_t s = goal;
  for (size_t unit = savings.size(); unit-- > 0;) {
    chosen[unit] = taken[unit][s].second;
    s = taken[unit][s].first;
  }
  return chosen;
}

}  // namespace qpruner::engine
