#include "base/durable_file.h"

#include <filesystem>

#include "gtest/gtest.h"

namespace qpruner {
namespace {

TEST(DurableFile, WritesReplacesAndLeavesNothingAside) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "durable_file_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "file").string();
  ASSERT_TRUE(WriteFileDurably(path, "first").ok());
  ASSERT_TRUE(WriteFileDurably(path, "second").ok());
  EXPECT_EQ(ReadFile(path, 100).value(), "second");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
}

TEST(DurableFile, RefusesWhatIsTooLargeOrAbsent) {
  const std::string path = testing::TempDir() + "/durable_file_large";
  ASSERT_TRUE(WriteFileDurably(path, "12345").ok());
  EXPECT_EQ(ReadFile(path, 4).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(path + ".none", 4).status().code(), absl::StatusCode::kNotFound);
}

TEST(DurableFile, CreatesFoldersWithTheirParents) {
  const std::filesystem::path root = std::filesystem::path(testing::TempDir()) / "create_folders";
  std::filesystem::remove_all(root);
  ASSERT_TRUE(CreateFolders((root / "a/b").string()).ok());
  ASSERT_TRUE(CreateFolders((root / "a/b/c/").string()).ok());
  EXPECT_TRUE(std::filesystem::is_directory(root / "a/b/c"));
  EXPECT_TRUE(CreateFolders((root / "a/b/c").string()).ok());
  ASSERT_TRUE(WriteFileDurably((root / "file").string(), "").ok());
  EXPECT_FALSE(CreateFolders((root / "file").string()).ok());
  EXPECT_FALSE(CreateFolders((root / "file/a").string()).ok());
}

}  // namespace
}  // namespace qpruner
