#include "server/rpc/callback_executor.h"

#include <vector>

#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

TEST(CallbackExecutor, DropsWorkBeyondItsBoundAndRunsTheRestInOrder) {
  absl::Notification began, go_on;
  std::vector<int> ran;
  {
    CallbackExecutor executor(1);
    executor.Add([&] {
      began.Notify();
      go_on.WaitForNotification();
    });
    began.WaitForNotification();
    EXPECT_TRUE(executor.TryAdd([&] { ran.push_back(1); }, 2));
    EXPECT_TRUE(executor.TryAdd([&] { ran.push_back(2); }, 2));
    EXPECT_FALSE(executor.TryAdd([&] { ran.push_back(3); }, 2));
    go_on.Notify();
  }
  EXPECT_THAT(ran, testing::ElementsAre(1, 2));
}

}  // namespace
}  // namespace qpruner::server
