#include "server/rpc/download_limit.h"

#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

TEST(DownloadLimit, BoundsTheServerAndEachProject) {
  DownloadLimit limit(/*most=*/3, /*most_of_a_project=*/2);
  auto first = limit.Take("a"), second = limit.Take("a");
  ASSERT_TRUE(first.ok() && second.ok());
  const absl::Status third = limit.Take("a").status();
  EXPECT_TRUE(absl::IsResourceExhausted(third)) << third;
  EXPECT_TRUE(RetryDelay(third));
  EXPECT_EQ(ErrorReason(third), "TOO_MANY_DOWNLOADS");
  auto other = limit.Take("b");
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(absl::IsResourceExhausted(limit.Take("b").status())) << "the server is full";
  first->reset();
  EXPECT_TRUE(limit.Take("c").ok()) << "a place that is not kept is free again";
  EXPECT_TRUE(limit.Take("a").ok());
}

}  // namespace
}  // namespace qpruner::server
