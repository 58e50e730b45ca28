#include "worker/engine/score/sensitivity.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/engine/score/variant_divergence.h"

namespace qpruner::engine {

std::vector<std::vector<double>> MeasureSensitivity(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized, const std::function<void(double fraction)>& on_progress) {
  // Group and format of each variant, by block, in the order of visiting.
  std::vector<std::vector<std::pair<size_t, size_t>>> visited(source.config().num_blocks());
  const VariantMaker quantize = [&](int64_t block, const BlockWeights& weights,
                                    const VariantVisitor& visit) {
    for (size_t group = 0; group < groups.size(); ++group) {
      if (groups[group].block != block) continue;
      for (size_t format = 0; format < formats.size(); ++format) {
        BlockWeights changed = weights;
        bool differs = false;
        for (LinearKind kind : groups[group].linears) {
          changed.weight[kind] = quantized(block, kind, weights.weight[kind], formats[format]);
          differs = differs || !at::equal(changed.weight[kind], weights.weight[kind]);
        }
        if (!differs) continue;
        visited[block].emplace_back(group, format);
        visit(source.config().blocks[block], changed);
      }
    }
  };
  const auto divergences = MeasureVariants(source, batches, quantize, on_progress);
  std::vector<std::vector<double>> sensitivities(groups.size(),
                                                 std::vector<double>(formats.size(), 0));
  for (size_t block = 0; block < visited.size(); ++block) {
    for (size_t i = 0; i < visited[block].size(); ++i) {
      const auto [group, format] = visited[block][i];
      sensitivities[group][format] = divergences[block][i];
    }
  }
  return sensitivities;
}

}  // namespace qpruner::engine
