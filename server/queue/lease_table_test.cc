#include "server/queue/lease_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

using testing::ElementsAre;

HeldLease Lease(const std::string& token, const std::string& job, int deadline_seconds) {
  return {.token = token,
          .job = {"default", job},
          .task_id = "prepare",
          .attempt = 1,
          .worker = "w-" + token,
          .incarnation = "a",
          .deadline = absl::Seconds(deadline_seconds)};
}

std::vector<std::string> Tokens(const std::vector<HeldLease>& leases) {
  std::vector<std::string> tokens;
  for (const HeldLease& lease : leases) tokens.push_back(lease.token);
  return tokens;
}

TEST(LeaseTable, ExpiresInOrderOfDeadlineThenToken) {
  LeaseTable table;
  EXPECT_EQ(table.NextDeadline(), std::nullopt);
  for (const char* token : {"d", "b", "a"}) table.Put(Lease(token, "j", 10));
  table.Put(Lease("c", "j", 5));
  table.Put(Lease("e", "j", 11));
  EXPECT_EQ(table.NextDeadline(), absl::Seconds(5));
  EXPECT_THAT(Tokens(table.TakeExpired(absl::Seconds(10))), ElementsAre("c", "a", "b", "d"));
  EXPECT_THAT(Tokens(table.TakeExpired(absl::Seconds(10))), ElementsAre());
  EXPECT_TRUE(table.Find("e"));
}

TEST(LeaseTable, RenewalNeverShortens) {
  LeaseTable table;
  table.Put(Lease("a", "j", 10));
  table.Renew("a", absl::Seconds(8));
  EXPECT_EQ(table.NextDeadline(), absl::Seconds(10));
  table.Renew("a", absl::Seconds(12));
  EXPECT_EQ(table.NextDeadline(), absl::Seconds(12));
  table.Renew("gone", absl::Seconds(20));
  EXPECT_FALSE(table.Find("gone"));
}

TEST(LeaseTable, FractionsOnlyRiseAndAddUpPerJob) {
  LeaseTable table;
  table.Put(Lease("a", "j", 10));
  table.Put(Lease("b", "j", 10));
  table.Put(Lease("c", "other", 10));
  table.RaiseFraction("a", 0.5);
  table.RaiseFraction("a", 0.25);
  table.RaiseFraction("b", 7);
  table.RaiseFraction("c", -1);
  table.RaiseFraction("gone", 1);
  EXPECT_EQ(table.RunningFraction({"default", "j"}, ""), 1.5);
  EXPECT_EQ(table.RunningFraction({"default", "j"}, "b"), 0.5);
}

TEST(LeaseTable, FindsAndTakesByWorkerAndJob) {
  LeaseTable table;
  HeldLease old = Lease("old", "j", 10), current = Lease("current", "j", 10);
  old.worker = current.worker = "w";
  old.incarnation = "before";
  table.Put(old);
  table.Put(current);
  table.Put(Lease("x", "other", 10));
  EXPECT_EQ(table.CountOf("w"), 2);
  EXPECT_EQ(table.FindOf("w", "a")->token, "current");
  EXPECT_THAT(Tokens(table.TakeOfOtherProcesses("w", "a")), ElementsAre("old"));
  table.EraseJob({"default", "j"});
  EXPECT_FALSE(table.Find("current"));
  EXPECT_TRUE(table.Find("x"));
}

}  // namespace
}  // namespace qpruner::server
