#include "base/stoppable_sleep.h"

#include <condition_variable>
#include <mutex>

namespace qpruner {

bool SleepUnlessStopped(const std::stop_token& stop, absl::Duration duration) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  wake.wait_for(lock, stop, absl::ToChronoMilliseconds(duration), [] { return false; });
  return !stop.stop_requested();
}

}  // namespace qpruner
