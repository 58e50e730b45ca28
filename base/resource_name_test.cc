#include "base/resource_name.h"

#include "gtest/gtest.h"

namespace qpruner {
namespace {

TEST(JobName, RoundTrips) {
  const auto name = JobName::Parse("projects/default/jobs/small-one");
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->ToString(), "projects/default/jobs/small-one");
  EXPECT_EQ(name->TrialName(7), "projects/default/jobs/small-one/trials/7");
}

TEST(JobName, RefusesForeignForms) {
  for (const char* bad : {"", "jobs/a", "projects/a/jobs/", "projects/a/jobs/B",
                          "projects/../jobs/a", "projects/a/jobs/b/c", "projects/a/jobs/1b"}) {
    EXPECT_FALSE(JobName::Parse(bad).ok()) << bad;
  }
}

TEST(ArtifactName, KeepsSlashesOfThePath) {
  const auto name = ArtifactName::Parse("projects/p/jobs/j/artifacts/model/model.safetensors");
  ASSERT_TRUE(name.ok());
  EXPECT_EQ(name->path, "model/model.safetensors");
}

TEST(ArtifactPath, NeverLeavesItsFolder) {
  EXPECT_TRUE(IsArtifactPath("model/config.json"));
  for (const char* bad : {"", "/etc/passwd", "a/../b", "..", "a//b", "a/./b", "a b", "a\\b"}) {
    EXPECT_FALSE(IsArtifactPath(bad)) << bad;
  }
}

}  // namespace
}  // namespace qpruner
