#include "server/rpc/event_reads.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

using testing::ElementsAre;

// One thread, whose first read waits to be let go on.
class EventReadsTest : public testing::Test {
 protected:
  void Ask(const std::string& job, int64_t after) {
    reads_->Ask({"p", job}, after, [this](const std::shared_ptr<const EventBatch>& batch) {
      answers_.push_back(batch);
    });
  }
  void AwaitAll() { reads_.reset(); }

  absl::Notification began_, go_on_;
  std::vector<std::string> reads_made_;
  std::vector<std::shared_ptr<const EventBatch>> answers_;
  std::unique_ptr<EventReads> reads_ = std::make_unique<EventReads>(
      [this](const JobName& job, int64_t after) {
        reads_made_.push_back(absl::StrCat(job.job, " after ", after));
        if (reads_made_.size() == 1) {
          began_.Notify();
          go_on_.WaitForNotification();
        }
        EventBatch batch;
        batch.events.emplace_back().set_sequence(after + 1);
        return batch;
      },
      /*thread_count=*/1);
};

TEST_F(EventReadsTest, WhoWaitsForTheSameEventsSharesARead) {
  Ask("a", 7);
  began_.WaitForNotification();
  // The read has begun: it may miss what these were told of.
  for (int i = 0; i < 1000; ++i) Ask("a", 7);
  Ask("a", 3);
  Ask("b", 7);
  go_on_.Notify();
  AwaitAll();
  EXPECT_THAT(reads_made_, ElementsAre("a after 7", "a after 7", "a after 3", "b after 7"));
  ASSERT_EQ(answers_.size(), 1003u);
  EXPECT_NE(answers_[0], answers_[1]);
  EXPECT_EQ(answers_[1], answers_[1000]) << "not even copied";
  EXPECT_EQ(answers_[1]->events[0].sequence(), 8);
  EXPECT_EQ(answers_[1001]->events[0].sequence(), 4);
}

}  // namespace
}  // namespace qpruner::server
