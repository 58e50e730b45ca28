// The linears of a decoder block and their names in a checkpoint. No LibTorch here.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_LINEAR_KIND_H_
#define QPRUNER_WORKER_ENGINE_MODEL_LINEAR_KIND_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace qpruner::engine {

// The linears of a block, in the order in which they are applied.
enum class LinearKind { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown };
inline constexpr int kLinearKindCount = 7;
inline constexpr std::array<LinearKind, kLinearKindCount> kLinearKinds = {
    LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue, LinearKind::kOutput,
    LinearKind::kGate,  LinearKind::kUp,  LinearKind::kDown};

// "self_attn.q_proj", ...
const char* LinearSuffix(LinearKind kind);
// "model.layers.3.self_attn.q_proj": the checkpoint's name without ".weight".
std::string LinearName(int64_t block, LinearKind kind);

// One value for each linear of a block.
template <typename T>
class PerLinear {
 public:
  T& operator[](LinearKind kind) { return values_[static_cast<size_t>(kind)]; }
  const T& operator[](LinearKind kind) const { return values_[static_cast<size_t>(kind)]; }

 private:
  std::array<T, kLinearKindCount> values_{};
};

// Some of a block's linears; LinearSet() is none.
using LinearSet = PerLinear<bool>;

inline LinearSet AllLinears() {
  LinearSet all;
  for (const LinearKind kind : kLinearKinds) all[kind] = true;
  return all;
}

inline bool IsAllLinears(const LinearSet& linears) {
  for (const LinearKind kind : kLinearKinds) {
    if (!linears[kind]) return false;
  }
  return true;
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_LINEAR_KIND_H_
