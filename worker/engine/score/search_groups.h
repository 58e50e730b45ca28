// The units that get one precision.
#ifndef QPRUNER_WORKER_ENGINE_SCORE_SEARCH_GROUPS_H_
#define QPRUNER_WORKER_ENGINE_SCORE_SEARCH_GROUPS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

enum class SearchGranularity {
  kBlock,       // A whole block: "model.layers.3".
  kFusedGroup,  // What serving engines fuse: "model.layers.3.attn_qkv", ".attn_out",
                // ".mlp_gate_up", ".mlp_down".
  kLinear,      // Each linear: "model.layers.3.self_attn.q_proj".
};

struct LinearGroup {
  std::string name;
  int64_t block = 0;
  std::vector<LinearKind> linears;  // In the order of application.
};

// Every linear of every block in exactly one group, in model order.
std::vector<LinearGroup> MakeSearchGroups(int64_t num_blocks, SearchGranularity granularity);

// Weights of a group, and the bytes they take in `format`.
int64_t ParameterCount(const ModelConfig& config, const LinearGroup& group);
int64_t PackedBytes(const ModelConfig& config, const LinearGroup& group, const Format& format);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SCORE_SEARCH_GROUPS_H_
