#include "worker/engine/model/linear_kind.h"

#include "absl/strings/str_cat.h"

namespace qpruner::engine {

const char* LinearSuffix(LinearKind kind) {
  switch (kind) {
    case LinearKind::kQuery:
      return "self_attn.q_proj";
    case LinearKind::kKey:
      return "self_attn.k_proj";
    case LinearKind::kValue:
      return "self_attn.v_proj";
    case LinearKind::kOutput:
      return "self_attn.o_proj";
    case LinearKind::kGate:
      return "mlp.gate_proj";
    case LinearKind::kUp:
      return "mlp.up_proj";
    case LinearKind::kDown:
      return "mlp.down_proj";
  }
  return "";
}

std::string LinearName(int64_t block, LinearKind kind) {
  return absl::StrCat("model.layers.", block, ".", LinearSuffix(kind));
}

}  // namespace qpruner::engine
