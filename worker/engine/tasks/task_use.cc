#include "worker/engine/tasks/task_use.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <fstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace qpruner::engine {
namespace {

// "VmHWM:     1234 kB" of /proc/self/status, in bytes; 0 if it is not told.
int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (!absl::StartsWith(line, "VmHWM:")) continue;
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t kibibytes = 0;
    return words.size() == 3 && absl::SimpleAtoi(words[1], &kibibytes) ? kibibytes * 1024 : 0;
  }
  return 0;
}

}  // namespace

UseMeter::UseMeter(at::Device device, Clock& clock)
    : device_(device), clock_(clock), start_(clock.Monotonic()) {
  std::ofstream("/proc/self/clear_refs") << "5";  // Sets VmHWM back (proc(5)).
  if (!device_.is_cpu()) {
    c10::getDeviceAllocator(device_.type())->resetPeakStats(device_.index());
  }
}

v1::TaskUse UseMeter::Read() const {
  v1::TaskUse use;
  use.set_seconds(absl::ToDoubleSeconds(clock_.Monotonic() - start_));
  use.set_peak_host_memory_bytes(PeakResidentBytes());
  if (!device_.is_cpu()) {
    const auto stats = c10::getDeviceAllocator(device_.type())->getDeviceStats(device_.index());
    // The first entry is over all pools.
    use.set_peak_device_memory_bytes(stats.allocated_bytes[0].peak);
  }
  return use;
}

TokenMetrics Timed(Clock& clock, const std::vector<TokenBatch>& batches,
                   const std::function<TokenMetrics()>& measure) {
  const absl::Duration start = clock.Monotonic();
  TokenMetrics metrics = measure();
  metrics.seconds = absl::ToDoubleSeconds(clock.Monotonic() - start);
  for (const TokenBatch& batch : batches) {
    metrics.read_tokens += batch.lengths.sum().item<int64_t>();
  }
  return metrics;
}

}  // namespace qpruner::engine
