// Seeds out of seeds.
#ifndef QPRUNER_WORKER_ENGINE_SPLIT_MIX_H_
#define QPRUNER_WORKER_ENGINE_SPLIT_MIX_H_

#include <cstdint>

#include "worker/engine/vector_clones.h"

namespace qpruner::engine {

// What SplitMix64's state grows by with each number.
inline constexpr uint64_t kSplitMixStep = 0x9e3779b97f4a7c15;

// One step of SplitMix64 (Steele et al. 2014): a bijection that mixes well, so that neighbouring
// numbers draw unrelated values.
QPRUNER_INLINE uint64_t SplitMix(uint64_t x) {
  x += kSplitMixStep;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_SPLIT_MIX_H_
