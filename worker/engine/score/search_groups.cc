#include "worker/engine/score/search_groups.h"

#include "absl/strings/str_cat.h"

namespace qpruner::engine {

std::vector<LinearGroup> MakeSearchGroups(int64_t num_blocks, SearchGranularity granularity) {
  std::vector<LinearGroup> groups;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const std::string prefix = absl::StrCat("model.layers.", block);
    switch (granularity) {
      case SearchGranularity::kBlock:
        groups.push_back({prefix, block, {kLinearKinds.begin(), kLinearKinds.end()}});
        break;
      case SearchGranularity::kFusedGroup:
        groups.push_back({prefix + ".attn_qkv",
                          block,
                          {LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue}});
        groups.push_back({prefix + ".attn_out", block, {LinearKind::kOutput}});
        groups.push_back({prefix + ".mlp_gate_up", block, {LinearKind::kGate, LinearKind::kUp}});
        groups.push_back({prefix + ".mlp_down", block, {LinearKind::kDown}});
        break;
      case SearchGranularity::kLinear:
        for (LinearKind kind : kLinearKinds) {
          groups.push_back({LinearName(block, kind), block, {kind}});
        }
        break;
    }
  }
  return groups;
}

int64_t ParameterCount(const ModelConfig& config, const LinearGroup& group) {
  int64_t count = 0;
  for (const LinearKind kind : group.linears) {
    const std::vector<int64_t> shape =
        LinearShape(config, config.blocks[static_cast<size_t>(group.block)], kind);
    count += shape[0] * shape[1];
  }
  return count;
}

int64_t PackedBytes(const ModelConfig& config, const LinearGroup& group, const Format& format) {
  int64_t bytes = 0;
  for (const LinearKind kind : group.linears) {
    const std::vector<int64_t> shape =
        LinearShape(config, config.blocks[static_cast<size_t>(group.block)], kind);
    bytes += PackedBytes(format, shape[0], shape[1]);
  }
  return bytes;
}

}  // namespace qpruner::engine
