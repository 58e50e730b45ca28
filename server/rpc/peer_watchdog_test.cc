#include "server/rpc/peer_watchdog.h"

#include <memory>
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

TEST(PeerWatchdog, AWaitOutlastsItsEnding) {
  SimulatedClock clock;
  PeerWatchdog watchdog(clock, absl::Seconds(60), absl::InfiniteDuration());
  absl::Notification began, go_on;
  bool finished = false;
  auto wait = std::make_unique<PeerWatchdog::Wait>(watchdog, [&] {
    began.Notify();
    go_on.WaitForNotification();
    finished = true;
  });
  clock.Advance(absl::Seconds(60));
  std::thread looker([&] { watchdog.Look(); });
  began.WaitForNotification();
  std::thread releaser([&] { go_on.Notify(); });
  wait.reset();
  EXPECT_TRUE(finished) << "what the call is made of may now be gone";
  looker.join();
  releaser.join();
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
