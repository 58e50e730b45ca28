// How the formats' work is divided among LibTorch's threads.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_PARALLEL_ROWS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_PARALLEL_ROWS_H_

#include <ATen/Parallel.h>

#include <cstdint>

namespace qpruner::engine {

// Elements a thread should at least get: below this, starting a thread costs more than it saves.
inline constexpr int64_t kElementsPerThread = 1 << 15;

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls work(begin, end) for ranges that make up [0, units), each unit of `unit_size` elements.
template <typename Work>
void ParallelUnits(int64_t units, int64_t unit_size, const Work& work) {
  at::parallel_for(0, units, CeilDivide(kElementsPerThread, unit_size), work);
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_PARALLEL_ROWS_H_
