#include "server/rpc/interrupted_uploads.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

// Counts those that are there.
class CountedWriter final : public ArtifactWriter {
 public:
  explicit CountedWriter(int& count) : count_(count) { ++count_; }
  ~CountedWriter() override { --count_; }
  absl::Status Append(absl::string_view) override { return absl::OkStatus(); }
  absl::Status Commit() override { return absl::OkStatus(); }

 private:
  int& count_;
};

class InterruptedUploadsTest : public testing::Test {
 protected:
  void Interrupt(const std::string& key, int64_t received_bytes) {
    InterruptedUploads::Running running(uploads_, key, [] { FAIL() << "it has ended"; });
    running.Keep(std::make_unique<CountedWriter>(writers_), received_bytes);
  }

  SimulatedClock clock_;
  int writers_ = 0;
  InterruptedUploads uploads_{
      clock_, {.keep_for = absl::Minutes(2), .most = 3, .look_interval = absl::InfiniteDuration()}};
};

TEST_F(InterruptedUploadsTest, IsTakenOnceAndOnlyWhereItStopped) {
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 0);
  Interrupt("a", 5);
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 5);
  EXPECT_EQ(uploads_.ReceivedBytes("b"), 0);
  EXPECT_EQ(uploads_.Take("a", 4), nullptr);
  EXPECT_EQ(uploads_.Take("b", 5), nullptr);
  EXPECT_NE(uploads_.Take("a", 5), nullptr);
  EXPECT_EQ(uploads_.Take("a", 5), nullptr);
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 0);
}

TEST_F(InterruptedUploadsTest, OfOneFileTheLongestIsKept) {
  Interrupt("a", 5);
  Interrupt("a", 3);
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 5);
  Interrupt("a", 7);
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 7);
  EXPECT_EQ(writers_, 1);
}

TEST_F(InterruptedUploadsTest, IsDroppedAfterAWhile) {
  Interrupt("a", 5);
  clock_.Advance(absl::Minutes(1));
  Interrupt("b", 6);
  clock_.Advance(absl::Seconds(59));
  uploads_.DropOld();
  EXPECT_EQ(writers_, 2);
  clock_.Advance(absl::Seconds(1));
  uploads_.DropOld();
  EXPECT_EQ(writers_, 1);
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 0);
  EXPECT_EQ(uploads_.ReceivedBytes("b"), 6);
}

TEST_F(InterruptedUploadsTest, AreBoundedInNumber) {
  for (int i = 0; i < 10; ++i) Interrupt(absl::StrCat(i), 1 + i);
  EXPECT_EQ(writers_, 3);
  EXPECT_EQ(uploads_.ReceivedBytes("6"), 0);
  for (int i = 7; i < 10; ++i) EXPECT_EQ(uploads_.ReceivedBytes(absl::StrCat(i)), 1 + i);
}

TEST_F(InterruptedUploadsTest, ACallThatStillRunsIsEndedAndWaitedFor) {
  std::thread call;
  std::unique_ptr<InterruptedUploads::Running> running;
  running = std::make_unique<InterruptedUploads::Running>(uploads_, "a", [&] {
    call = std::thread([&] {
      running->Keep(std::make_unique<CountedWriter>(writers_), 5);
      running.reset();
    });
  });
  const InterruptedUploads::Running other(uploads_, "b", [] { FAIL() << "nobody asked for it"; });
  EXPECT_EQ(uploads_.ReceivedBytes("a"), 5);
  call.join();
}

}  // namespace
}  // namespace qpruner::server
