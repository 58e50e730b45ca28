#include "base/folder_lock.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace qpruner {
namespace {

class FolderLockTest : public testing::Test {
 protected:
  FolderLockTest() {
    std::string pattern = testing::TempDir() + "/folder_lock.XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~FolderLockTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(FolderLockTest, IsExclusiveUntilDestroyed) {
  auto first = FolderLock::Take(folder_);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = FolderLock::Take(folder_).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(second.message().find(absl::StrCat("process ", getpid())), std::string::npos) << second;
  EXPECT_NE(second.message().find(folder_), std::string::npos) << second;
  first->reset();
  EXPECT_TRUE(FolderLock::Take(folder_).ok());
}

TEST_F(FolderLockTest, EndsWithItsProcess) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto lock = FolderLock::Take(folder_);
    const char answer = lock.ok() ? 'y' : 'n';
    if (write(ready[1], &answer, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char answer = 0;
  ASSERT_EQ(read(ready[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  EXPECT_FALSE(FolderLock::Take(folder_).ok());
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(FolderLock::Take(folder_).ok());
  close(ready[0]);
  close(ready[1]);
}

TEST_F(FolderLockTest, NamesAMissingFolder) {
  const absl::Status status = FolderLock::Take(folder_ + "/absent").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner
