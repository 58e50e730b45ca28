#include "server/rpc/stream_limit.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

TEST(StreamLimit, BoundsTheServerAndEachHolder) {
  StreamLimit limit(
      {.what = "downloads", .reason = "TOO_MANY_DOWNLOADS", .most = 3, .most_of_a_holder = 2});
  auto first = limit.Take("projects/a"), second = limit.Take("projects/a");
  ASSERT_TRUE(first.ok() && second.ok());
  const absl::Status third = limit.Take("projects/a").status();
  EXPECT_TRUE(absl::IsResourceExhausted(third)) << third;
  EXPECT_TRUE(RetryDelay(third));
  EXPECT_EQ(ErrorReason(third), "TOO_MANY_DOWNLOADS");
  EXPECT_THAT(std::string(third.message()), testing::HasSubstr("projects/a"));
  auto other = limit.Take("projects/b");
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(limit.Take("projects/b").status())) << "the server is full";
  first->reset();
  EXPECT_TRUE(limit.Take("projects/c").ok()) << "a place that is not kept is free again";
  EXPECT_TRUE(limit.Take("projects/a").ok());
}

}  // namespace
}  // namespace qpruner::server
