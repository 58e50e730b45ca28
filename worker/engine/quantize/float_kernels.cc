#include "worker/engine/quantize/float_kernels.h"

namespace qpruner::engine {

QPRUNER_VECTOR_CLONES
bool AllFinite(const float* values, int64_t count) {
  constexpr uint32_t kInfinityBits = 0x7F800000;
  return MaxAbsBits(values, count) < kInfinityBits;
}

}  // namespace qpruner::engine
