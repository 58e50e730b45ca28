#include "server/queue/lease_table.h"

#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
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

// Whatever brings a lease in or takes it out, what is asked about its worker and job follows.
TEST(LeaseTable, WorkersAndJobsFollowEveryChange) {
  LeaseTable table;
  HeldLease lease = Lease("t", "j", 10);
  lease.worker = "before";
  table.Put(lease);
  lease.worker = "w";
  lease.job = {"default", "other"};
  lease.fraction = 0.5;
  table.Put(lease);
  EXPECT_FALSE(table.FindOf("before", "a"));
  EXPECT_EQ(table.CountOf("before"), 0);
  EXPECT_EQ(table.FindOf("w", "a")->token, "t");
  EXPECT_EQ(table.RunningFraction({"default", "j"}, ""), 0);
  EXPECT_EQ(table.RunningFraction({"default", "other"}, ""), 0.5);
  // Another server's lease comes, and its own is over.
  internal::v1::TaskRecord stored;
  stored.set_lease_token("u");
  stored.set_job("projects/default/jobs/j");
  stored.set_worker("w");
  stored.set_incarnation("a");
  table.Sync({stored}, absl::Seconds(1), absl::Seconds(15));
  EXPECT_EQ(table.FindOf("w", "a")->token, "u");
  EXPECT_EQ(table.CountOf("w"), 1);
  table.EraseJob({"default", "other"});
  EXPECT_EQ(table.CountOf("w"), 1);
  EXPECT_THAT(Tokens(table.TakeExpired(absl::Seconds(16))), ElementsAre("u"));
  EXPECT_EQ(table.CountOf("w"), 0);
  table.Put(lease);
  table.Erase("t");
  EXPECT_FALSE(table.FindOf("w", "a"));
}

// What a tick asks for each poll; the figure is for people, the machine may be busy.
TEST(LeaseTable, TellsWhatALookForEachOfAThousandWorkersCosts) {
  LeaseTable table;
  constexpr int kWorkers = 1000;
  for (int i = 0; i < kWorkers; ++i) {
    table.Put(Lease(absl::StrCat(i), absl::StrCat("job-", i), 10));
  }
  const absl::Duration begin = RealClock().Monotonic();
  int found = 0;
  for (int i = 0; i < kWorkers; ++i) found += table.FindOf(absl::StrCat("w-", i), "a").has_value();
  std::cout << kWorkers << " workers looked up among as many leases: "
            << absl::FormatDuration(RealClock().Monotonic() - begin) << "\n";
  EXPECT_EQ(found, kWorkers);
}

}  // namespace
}  // namespace qpruner::server
