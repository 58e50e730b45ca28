#include "server/queue/project_policies.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::server {
namespace {

using testing::HasSubstr;

TEST(QuotaFile, NamesProjectsAndLeavesTheOthersTheirDefaults) {
  const auto policies = ParseQuotaFile(R"({
    "maxQueuedJobs": 5000,
    "defaults": {"maxQueuedJobs": 100, "maxRunningTasks": 4},
    "projects": {
      "research": {"weight": 2.5, "maxRunningTasks": 16},
      "archive": {"maxArtifactBytes": "1000000000000"}
    }
  })");
  ASSERT_TRUE(policies.ok()) << policies.status();
  EXPECT_EQ(policies->max_queued_jobs, 5000);
  EXPECT_EQ(policies->Of("anyone").weight, 1);
  EXPECT_EQ(policies->Of("anyone").max_queued_jobs, 100);
  EXPECT_EQ(policies->Of("anyone").max_artifact_bytes, 0);
  EXPECT_EQ(policies->Of("research").weight, 2.5);
  EXPECT_EQ(policies->Of("research").max_running_tasks, 16);
  EXPECT_EQ(policies->Of("research").max_queued_jobs, 100);
  EXPECT_EQ(policies->Of("archive").max_artifact_bytes, 1'000'000'000'000);
}

TEST(QuotaFile, WithoutOneOnlyTheWholeQueueIsBounded) {
  const auto policies = ParseQuotaFile("{}");
  ASSERT_TRUE(policies.ok());
  EXPECT_EQ(policies->max_queued_jobs, 100'000);
  EXPECT_EQ(policies->Of("p").max_queued_jobs, 0);
  EXPECT_EQ(policies->Of("p").max_running_tasks, 0);
}

TEST(QuotaFile, MistakesAreNamed) {
  const auto message = [](const char* json) {
    return std::string(ParseQuotaFile(json).status().message());
  };
  EXPECT_THAT(message("defaults: 1"), HasSubstr("not JSON of a quota file"));
  EXPECT_THAT(message(R"({"default": {}})"), HasSubstr("default"));
  EXPECT_THAT(message(R"({"maxQueuedJobs": 0})"), HasSubstr("maxQueuedJobs must be from 1"));
  EXPECT_THAT(message(R"({"defaults": {"weight": 0}})"),
              HasSubstr("defaults.weight must be from 0.001 to 1000, is 0"));
  EXPECT_THAT(message(R"({"defaults": {"weight": "NaN"}})"), HasSubstr("defaults.weight"));
  EXPECT_THAT(message(R"({"projects": {"a": {"maxRunningTasks": -1}}})"),
              HasSubstr("projects.a.maxRunningTasks must be from 1"));
  EXPECT_THAT(message(R"({"projects": {"A/b": {}}})"), HasSubstr("is \"A/b\""));
}

}  // namespace
}  // namespace qpruner::server
