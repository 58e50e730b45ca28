#include "server/rpc/peer_watchdog.h"

#include <optional>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using ::testing::ElementsAre;

TEST(PeerWatchdog, EndsWhatWaitsTooLongOnce) {
  SimulatedClock clock;
  PeerWatchdog watchdog(clock, absl::Seconds(60), absl::InfiniteDuration());
  std::vector<int> ended;
  const auto note = [&ended](int which) { return [&ended, which] { ended.push_back(which); }; };
  std::optional<PeerWatchdog::Wait> first, second;
  first.emplace(watchdog, note(1));
  clock.Advance(absl::Seconds(30));
  second.emplace(watchdog, note(2));
  clock.Advance(absl::Seconds(29));
  watchdog.Look();
  EXPECT_THAT(ended, ElementsAre());
  // A peer that did something is waited for anew.
  first.reset();
  first.emplace(watchdog, note(3));
  clock.Advance(absl::Seconds(31));
  watchdog.Look();
  watchdog.Look();
  EXPECT_THAT(ended, ElementsAre(2));
  clock.Advance(absl::Seconds(29));
  watchdog.Look();
  EXPECT_THAT(ended, ElementsAre(2, 3));
  EXPECT_EQ(watchdog.waiting(), 2u) << "until their calls have noticed";
  first.reset();
  second.reset();
  EXPECT_EQ(watchdog.waiting(), 0u);
}

// gRPC ends calls, and so their waits, on whatever thread it is on, under whatever lock.
TEST(PeerWatchdog, AWaitMayEndWhileItsCallIsEndedAndWithinThat) {
  SimulatedClock clock;
  PeerWatchdog watchdog(clock, absl::Seconds(60), absl::InfiniteDuration());
  std::optional<PeerWatchdog::Wait> within;
  within.emplace(watchdog, [&] { within.reset(); });
  absl::Notification began, go_on;
  std::optional<PeerWatchdog::Wait> meanwhile;
  meanwhile.emplace(watchdog, [&] {
    began.Notify();
    go_on.WaitForNotification();
  });
  clock.Advance(absl::Seconds(60));
  std::thread looker([&] { watchdog.Look(); });
  began.WaitForNotification();
  EXPECT_FALSE(within.has_value());
  meanwhile.reset();
  EXPECT_EQ(watchdog.waiting(), 0u);
  go_on.Notify();
  looker.join();
}

TEST(PeerWatchdog, LooksByItself) {
  SimulatedClock clock;
  PeerWatchdog watchdog(clock, absl::Seconds(60), absl::Milliseconds(1));
  absl::Notification ended;
  const PeerWatchdog::Wait wait(watchdog, [&] { ended.Notify(); });
  clock.Advance(absl::Seconds(60));
  ended.WaitForNotification();
}

}  // namespace
}  // namespace qpruner::server
