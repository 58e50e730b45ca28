#include "worker/engine/tasks/task_use.h"

#include <ATen/ATen.h>

#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

// Each look at it takes two seconds.
class SteppingClock final : public Clock {
 public:
  absl::Time Now() override { return absl::UnixEpoch(); }
  absl::Duration Monotonic() override { return absl::Seconds(2 * ++looks_); }

 private:
  int looks_ = 0;
};

TEST(UseMeterTest, SeesThePeakOfTheTaskAndNotOfTheOneBefore) {
  SteppingClock clock;
  const UseMeter large(at::kCPU, clock);
  constexpr int64_t kBytes = int64_t{256} << 20;
  { at::Tensor block = at::ones({kBytes}, at::kByte); }
  const v1::TaskUse first = large.Read();
  EXPECT_EQ(first.seconds(), 2);
  EXPECT_GT(first.peak_host_memory_bytes(), kBytes);
  EXPECT_EQ(first.peak_device_memory_bytes(), 0);
  const UseMeter small(at::kCPU, clock);
  // Where the kernel lets a process set its peak back; it does since Linux 4.0.
  EXPECT_LT(small.Read().peak_host_memory_bytes(), first.peak_host_memory_bytes() - kBytes / 2);
}

TEST(TimedTest, CountsTheTokensThatAreRead) {
  SteppingClock clock;
  const TokenMetrics metrics = Timed(clock, BatchWindows({{{1, 2, 3, 4}, 1}, {{3, 4, 5}, 2}}), [] {
    TokenMetrics measured;
    measured.token_count = 4;
    return measured;
  });
  EXPECT_EQ(metrics.token_count, 4);
  EXPECT_EQ(metrics.read_tokens, 7);
  EXPECT_EQ(metrics.tokens_per_second(), 3.5);
  EXPECT_EQ(TokenMetrics().tokens_per_second(), 0);
}

}  // namespace
}  // namespace qpruner::engine
