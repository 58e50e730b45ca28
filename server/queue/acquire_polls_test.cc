#include "server/queue/acquire_polls.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

using testing::ElementsAre;

AcquirePoll Poll(AcquirePolls& polls, const std::string& worker, int deadline_seconds,
                 const std::string& incarnation = "a") {
  return {.id = polls.NewId(),
          .worker = worker,
          .incarnation = incarnation,
          .deadline = absl::Seconds(deadline_seconds)};
}

std::vector<std::string> Workers(const std::vector<AcquirePoll>& polls) {
  std::vector<std::string> workers;
  for (const AcquirePoll& poll : polls) workers.push_back(poll.worker);
  return workers;
}

TEST(AcquirePolls, AWorkerWaitsOnce) {
  AcquirePolls polls;
  AcquirePoll first = Poll(polls, "w1", 10), second = Poll(polls, "w1", 10);
  const int64_t first_id = first.id;
  std::optional<AcquirePoll> older;
  ASSERT_TRUE(polls.Add(first, older));
  EXPECT_FALSE(older);
  ASSERT_TRUE(polls.Add(second, older));
  ASSERT_TRUE(older);
  EXPECT_EQ(older->id, first_id);
  EXPECT_FALSE(polls.Take(first_id));
  EXPECT_EQ(polls.List().size(), 1u);
}

TEST(AcquirePolls, OldestFirstAndTakenOnce) {
  AcquirePolls polls;
  std::optional<AcquirePoll> older;
  for (const char* worker : {"w2", "w1", "w3"}) {
    AcquirePoll poll = Poll(polls, worker, worker == std::string("w1") ? 5 : 10);
    ASSERT_TRUE(polls.Add(poll, older));
  }
  EXPECT_EQ(polls.NextDeadline(), absl::Seconds(5));
  EXPECT_THAT(Workers(polls.List()), ElementsAre("w2", "w1", "w3"));
  EXPECT_THAT(Workers(polls.TakeExpired(absl::Seconds(5))), ElementsAre("w1"));
  const int64_t id = polls.List().front().id;
  EXPECT_TRUE(polls.Take(id));
  EXPECT_FALSE(polls.Take(id));
  EXPECT_THAT(Workers(polls.TakeOfOtherProcesses("w3", "b")), ElementsAre("w3"));
  EXPECT_TRUE(polls.empty());
}

TEST(AcquirePolls, NothingIsAddedOnceClosed) {
  AcquirePolls polls;
  std::optional<AcquirePoll> older;
  AcquirePoll first = Poll(polls, "w1", 10), second = Poll(polls, "w2", 10);
  ASSERT_TRUE(polls.Add(first, older));
  EXPECT_THAT(Workers(polls.Close()), ElementsAre("w1"));
  EXPECT_FALSE(polls.Add(second, older));
  EXPECT_EQ(second.worker, "w2") << "it stays with the caller";
}

}  // namespace
}  // namespace qpruner::server
