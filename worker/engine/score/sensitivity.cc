#include "worker/engine/score/sensitivity.h"

#include <ATen/ATen.h>

#include <utility>

#include "worker/engine/score/variant_divergence.h"

namespace qpruner::engine {

std::vector<std::vector<double>> MeasureSensitivity(
    WeightSource& source, const std::vector<TokenBatch>& batches,
    const std::vector<LinearGroup>& groups, const std::vector<Format>& formats,
    const QuantizedWeight& quantized, const std::function<void(double fraction)>& on_progress,
    const SensitivityProgress& progress) {
  std::vector<std::vector<double>> sensitivities(groups.size(),
                                                 std::vector<double>(formats.size(), 0));
  for (size_t group = 0; group < groups.size(); ++group) {
    if (groups[group].block < progress.measured_blocks) {
      sensitivities[group] = progress.sensitivities.at(group);
    }
  }
  // Group and format of each variant of the block in work, in the order of visiting.
  std::vector<std::pair<size_t, size_t>> visited;
  const VariantMaker quantize = [&](int64_t block, const BlockWeights& weights,
                                    const VariantVisitor& visit) {
    visited.clear();
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
        visited.emplace_back(group, format);
        visit(source.config().blocks[block], changed);
      }
    }
  };
  MeasureVariants(source, batches, quantize, on_progress,
                  {.first_block = progress.measured_blocks,
                   .on_block = [&](int64_t block, const std::vector<double>& divergences) {
                     for (size_t i = 0; i < visited.size(); ++i) {
                       const auto [group, format] = visited[i];
                       sensitivities[group][format] = divergences[i];
                     }
                     if (progress.on_block) progress.on_block(block + 1, sensitivities);
                   }});
  return sensitivities;
}

}  // namespace qpruner::engine
