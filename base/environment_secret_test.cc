#include "base/environment_secret.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>

namespace qpruner {
namespace {

std::string OwnEnvironment() {
  std::ifstream file("/proc/self/environ");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The program starts itself anew, with the secret in the environment that it begins with.
TEST(TakeFromEnvironment, LeavesNothingBehind) {
  if (getenv("QPRUNER_TEST_SECRET") != nullptr) {
    ASSERT_NE(OwnEnvironment().find("hush-hush"), std::string::npos);
    EXPECT_EQ(TakeFromEnvironment("QPRUNER_TEST_SECRET"), "hush-hush");
    EXPECT_EQ(getenv("QPRUNER_TEST_SECRET"), nullptr);
    EXPECT_EQ(OwnEnvironment().find("hush-hush"), std::string::npos);
    EXPECT_EQ(TakeFromEnvironment("QPRUNER_TEST_SECRET"), "");
    return;
  }
  const pid_t child = fork();
  if (child == 0) {
    setenv("QPRUNER_TEST_SECRET", "hush-hush", 1);
    execl("/proc/self/exe", "base_test", "--gtest_filter=TakeFromEnvironment.*", nullptr);
    _exit(99);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace qpruner
