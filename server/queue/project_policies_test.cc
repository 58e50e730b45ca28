#include "server/queue/project_policies.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/queue/quota_file.h"
#include "tests/testing/simulated_clock.h"
#include "tests/testing/temp_folder.h"

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

TEST(QuotaFile, IsReadAgainWhenItChangesUnlessItIsBad) {
  TempFolder folder;
  const std::string path = folder.path() + "/quotas.json";
  SimulatedClock clock;
  EXPECT_TRUE(absl::IsInvalidArgument(QuotaFile::Open(path, clock).status()));
  const auto write = [&](int most) {
    const std::string json = absl::StrCat(R"({"defaults": {"maxRunningTasks": )", most, "}}");
    ASSERT_TRUE(WriteFileDurably(path, json).ok());
  };
  write(3);
  const auto file = QuotaFile::Open(path, clock).value();
  EXPECT_EQ(file->policies().fallback.max_running_tasks, 3);
  const auto look = [&] {
    clock.Advance(absl::Seconds(1));
    return file->ReadIfChanged();
  };
  EXPECT_FALSE(look());
  write(4);
  EXPECT_FALSE(file->ReadIfChanged()) << "once a second";
  EXPECT_TRUE(look());
  EXPECT_EQ(file->policies().fallback.max_running_tasks, 4);
  write(-1);
  EXPECT_FALSE(look());
  std::filesystem::remove(path);
  EXPECT_FALSE(look());
  EXPECT_EQ(file->policies().fallback.max_running_tasks, 4) << "a bad file changes nothing";
  write(5);
  EXPECT_TRUE(look());
  EXPECT_EQ(file->policies().fallback.max_running_tasks, 5);
}

}  // namespace
}  // namespace qpruner::server
