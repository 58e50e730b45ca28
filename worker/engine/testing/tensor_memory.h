// How much memory tensors take, so that tests can hold memory plans to what is measured.
#ifndef QPRUNER_WORKER_ENGINE_TESTING_TENSOR_MEMORY_H_
#define QPRUNER_WORKER_ENGINE_TESTING_TENSOR_MEMORY_H_

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>

namespace qpruner::engine {

// The most bytes of tensors on the CPU that `work` has at a time beyond what there was before, as
// LibTorch's allocator tells profilers. Of this thread; what libraries take for themselves is not
// seen.
inline int64_t PeakTensorBytes(const std::function<void()>& work) {
  struct Meter final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* /*address*/, int64_t bytes, size_t /*allocated*/,
                           size_t /*reserved*/, c10::Device device) override {
      if (!device.is_cpu()) return;
      held += bytes;  // Negative where memory is freed.
      peak = std::max(peak, held);
    }
    bool memoryProfilingEnabled() const override { return true; }

    int64_t held = 0;
    int64_t peak = 0;
  };
  const auto meter = std::make_shared<Meter>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
    work();
  }
  return meter->peak;
}

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TESTING_TENSOR_MEMORY_H_
