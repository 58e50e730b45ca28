#include "base/child_process.h"

#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace qpruner {
namespace {

TEST(ChildProcess, ReportsAProgramThatIsNotThere) {
  EXPECT_EQ(ChildProcess::Spawn({.argv = {"/nonexistent"}}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(ChildProcess, HandsOverDescriptorsInOrder) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  auto child = ChildProcess::Spawn(
      {.argv = {"/bin/sh", "-c", "echo hello >&3"}, .inherited_fds = {sockets[1]}});
  ASSERT_TRUE(child.ok()) << child.status();
  close(sockets[1]);
  char buffer[6] = {};
  EXPECT_EQ(recv(sockets[0], buffer, 6, MSG_WAITALL), 6);
  EXPECT_EQ(std::string(buffer, 5), "hello");
  close(sockets[0]);
}

TEST(ChildProcess, KillEndsTheWholeGroup) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  // The grandchild holds the socket too: end of file comes only once both are gone.
  auto child = ChildProcess::Spawn(
      {.argv = {"/bin/sh", "-c", "sleep 1000 & echo up >&3; wait"}, .inherited_fds = {sockets[1]}});
  ASSERT_TRUE(child.ok()) << child.status();
  close(sockets[1]);
  char buffer[3];
  ASSERT_EQ(recv(sockets[0], buffer, 3, MSG_WAITALL), 3);
  (*child)->Kill();
  EXPECT_EQ(recv(sockets[0], buffer, 1, 0), 0);
  EXPECT_EQ(DescribeWaitStatus(*(*child)->Poll()), "killed by signal 9 (Killed)");
  close(sockets[0]);
}

TEST(ChildProcess, TellsTheExitStatus) {
  auto child = ChildProcess::Spawn({.argv = {"/bin/sh", "-c", "exit 3"}});
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE((*child)->WaitFor(absl::Seconds(10)));
  EXPECT_EQ(DescribeWaitStatus(*(*child)->Poll()), "exited with status 3");
}

}  // namespace
}  // namespace qpruner
