#include "worker/engine/confinement/confinement.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "base/machine_memory.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;

// What a confined process gets: 0, or the errno of what it tried.
int Errno(bool succeeded) { return succeeded ? 0 : errno; }

int TryWrite(const fs::path& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT, 0644);
  return Errno(fd >= 0 && write(fd, "x", 1) == 1);
}
int TryRead(const fs::path& path) {
  char byte;
  const int fd = open(path.c_str(), O_RDONLY);
  return Errno(fd >= 0 && read(fd, &byte, 1) == 1);
}

class ConfinementTest : public testing::Test {
 protected:
  ConfinementTest() {
    char pattern[] = "/tmp/qpruner-confinement.XXXXXX";
    folder_ = mkdtemp(pattern);
    for (const char* name : {"own", "models", "other"}) {
      fs::create_directory(folder_ / name);
      std::ofstream(folder_ / name / "file") << "content";
    }
    options_.writable = {folder_ / "own"};
  }
  ~ConfinementTest() override { fs::remove_all(folder_); }

  // What `attempt` gives in a process confined by options_. Confinement is for good, so each
  // attempt has a process of its own.
  int Confined(const std::function<int()>& attempt) {
    const pid_t child = fork();
    if (child == 0) {
      Confinement confinement;
      if (!Confine(options_, confinement).ok()) _exit(250);
      _exit(attempt());
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
    return WEXITSTATUS(status);
  }

  // Whether this kernel can do `what`; says so where it cannot.
  bool Holds(bool Confinement::*what) {
    return Confined([&] {
             Confinement confinement;  // Can be asked for twice.
             return Confine(options_, confinement).ok() && confinement.*what ? 1 : 0;
           }) == 1;
  }

  fs::path folder_;
  ConfinementOptions options_;
};

TEST_F(ConfinementTest, OnlyItsOwnFilesCanBeWritten) {
  if (!Holds(&Confinement::files)) GTEST_SKIP() << "This kernel has no Landlock";
  EXPECT_EQ(Confined([&] { return TryWrite(folder_ / "own/new"); }), 0);
  EXPECT_EQ(Confined([&] { return TryWrite(folder_ / "own/file"); }), 0);
  EXPECT_EQ(Confined([&] { return TryWrite("/dev/null"); }), 0);
  EXPECT_EQ(Confined([&] { return TryWrite(folder_ / "other/new"); }), EACCES);
  EXPECT_EQ(Confined([&] { return TryWrite(folder_ / "other/file"); }), EACCES);
  EXPECT_EQ(Confined([&] { return Errno(unlink((folder_ / "other/file").c_str()) == 0); }), EACCES);
  EXPECT_EQ(Confined([&] {
              return Errno(
                  rename((folder_ / "own/file").c_str(), (folder_ / "other/moved").c_str()) == 0);
            }),
            EACCES);
  EXPECT_EQ(Confined([&] { return Errno(mkdir((folder_ / "other/sub").c_str(), 0755) == 0); }),
            EACCES);
  // A link out of its folder leads nowhere.
  fs::create_symlink(folder_ / "other/file", folder_ / "own/link");
  EXPECT_EQ(Confined([&] { return TryWrite(folder_ / "own/link"); }), EACCES);
  // Within its folder files move freely, between folders too.
  fs::create_directory(folder_ / "own/sub");
  EXPECT_EQ(Confined([&] {
              return Errno(
                  rename((folder_ / "own/file").c_str(), (folder_ / "own/sub/file").c_str()) == 0);
            }),
            0);
}

TEST_F(ConfinementTest, ReadingIsFreeUnlessFoldersAreNamed) {
  if (!Holds(&Confinement::files)) GTEST_SKIP() << "This kernel has no Landlock";
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "other/file"); }), 0);
  options_.readable = {folder_ / "models"};
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "models/file"); }), 0);
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "own/file"); }), 0);
  EXPECT_EQ(Confined([&] { return TryRead("/proc/self/status"); }), 0);
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "other/file"); }), EACCES);
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "models/../other/file"); }), EACCES);
  fs::create_symlink(folder_ / "other/file", folder_ / "models/link");
  EXPECT_EQ(Confined([&] { return TryRead(folder_ / "models/link"); }), EACCES);
}

TEST_F(ConfinementTest, ThereIsNoNetworkAndNoOtherProgram) {
  if (!Holds(&Confinement::system_calls)) GTEST_SKIP() << "This kernel has no seccomp filters";
  EXPECT_EQ(Confined([] { return Errno(socket(AF_INET, SOCK_STREAM, 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(socket(AF_INET6, SOCK_DGRAM, 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(socket(AF_NETLINK, SOCK_RAW, 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(socket(AF_UNIX, SOCK_STREAM, 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] {
              char* const argv[] = {const_cast<char*>("/bin/true"), nullptr};
              execv(argv[0], argv);
              return errno;
            }),
            EPERM);
  EXPECT_EQ(Confined([] { return Errno(kill(getppid(), 0) == 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(kill(getpid(), 0) == 0); }), 0);
  EXPECT_EQ(Confined([] {
              const long made = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
              if (made == 0) _exit(0);
              return Errno(made > 0);
            }),
            EPERM);
  // It can still make threads.
  EXPECT_EQ(Confined([] {
              int made = 1;
              std::thread([&made] { made = 0; }).join();
              return made;
            }),
            0);
  // A GPU's driver needs those of this machine.
  options_.local_sockets = true;
  EXPECT_EQ(Confined([] { return Errno(socket(AF_INET, SOCK_STREAM, 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(socket(AF_UNIX, SOCK_STREAM, 0) >= 0); }), 0);
}

TEST_F(ConfinementTest, ItStaysOneProcessWhichCanBeEnded) {
  if (!Holds(&Confinement::system_calls)) GTEST_SKIP() << "This kernel has no seccomp filters";
  EXPECT_EQ(Confined([] {
              const pid_t child = fork();
              if (child == 0) _exit(0);
              return Errno(child > 0);
            }),
            EPERM);
  for (const long call : {SYS_fork, SYS_vfork}) {
    EXPECT_EQ(Confined([call] {
                const long child = syscall(call);
                if (child == 0) _exit(0);
                return Errno(child > 0);
              }),
              EPERM);
  }
  EXPECT_EQ(Confined([] { return Errno(setsid() >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(setpgid(0, 0) == 0); }), EPERM);
}

TEST_F(ConfinementTest, NoMemoryIsOutsideOfTheLimit) {
  if (!Holds(&Confinement::system_calls)) GTEST_SKIP() << "This kernel has no seccomp filters";
  const auto share = [](int flags) {
    return Errno(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0) !=
                 MAP_FAILED);
  };
  EXPECT_EQ(Confined([&] { return share(MAP_PRIVATE); }), 0);
  EXPECT_EQ(Confined([&] { return share(MAP_SHARED); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(memfd_create("x", 0) >= 0); }), EPERM);
  EXPECT_EQ(Confined([] { return Errno(shmget(IPC_PRIVATE, 4096, 0600) >= 0); }), EPERM);
  // Files are mapped as before.
  EXPECT_EQ(Confined([this] {
              const int fd = open((folder_ / "own/file").c_str(), O_RDONLY);
              return Errno(mmap(nullptr, 4, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
            }),
            0);
}

TEST_F(ConfinementTest, MemoryAndFilesHaveAnEnd) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "A sanitizer reserves more memory than there is";
#endif
  options_.memory_bytes = 256 << 20;
  options_.file_bytes = 1 << 20;
  const auto take = [](size_t bytes) {
    return Errno(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
                 MAP_FAILED);
  };
  EXPECT_EQ(Confined([&] { return take(64 << 20); }), 0);
  EXPECT_EQ(Confined([&] { return take(512 << 20); }), ENOMEM);
  // What plans are made by.
  EXPECT_EQ(Confined([] { return MachineMemory() == 256 << 20 ? 0 : 1; }), 0);
  const auto grow = [&](off_t bytes) {
    const int fd = open((folder_ / "own/large").c_str(), O_WRONLY | O_CREAT, 0644);
    return Errno(fd >= 0 && ftruncate(fd, bytes) == 0);
  };
  EXPECT_EQ(Confined([&] { return grow(1 << 20); }), 0);
  EXPECT_EQ(Confined([&] { return grow(2 << 20); }), EFBIG);
}

// The processors that the calling thread may run on.
cpu_set_t Processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

TEST_F(ConfinementTest, ProcessorsHaveABoundForAllThreads) {
  const cpu_set_t all = Processors();
  const int there = CPU_COUNT(&all);
  options_.cpus = 1;
  EXPECT_EQ(Confined([] {
              const cpu_set_t own = Processors();
              return CPU_COUNT(&own);
            }),
            1);
  EXPECT_EQ(Confined([] {
              int count = 0;
              std::thread([&count] {
                const cpu_set_t own = Processors();
                count = CPU_COUNT(&own);
              }).join();
              return count;
            }),
            1);
  // Neighbours get different ones as long as there are enough, of those that there are.
  const auto chosen = [&](int64_t first) {
    options_.first_cpu = first;
    return Confined([&] {
      const cpu_set_t own = Processors();
      for (int cpu = 0; cpu < 200; ++cpu) {
        if (CPU_ISSET(cpu, &own)) return CPU_ISSET(cpu, &all) ? cpu : 201;
      }
      return 200;
    });
  };
  EXPECT_LT(chosen(0), 200);
  EXPECT_EQ(chosen(0) == chosen(1), there == 1);
  EXPECT_EQ(chosen(there), chosen(0));
  options_.first_cpu = 1;
  options_.cpus = 100'000;
  EXPECT_EQ(Confined([&] {
              const cpu_set_t own = Processors();
              return CPU_EQUAL(&own, &all) ? 0 : 1;
            }),
            0);
  if (!Holds(&Confinement::system_calls)) GTEST_SKIP() << "This kernel has no seccomp filters";
  options_.cpus = 1;
  // It is told that it may have them all, and has one.
  EXPECT_EQ(Confined([&] {
              if (sched_setaffinity(0, sizeof all, &all) != 0) return 100;
              const cpu_set_t own = Processors();
              return CPU_COUNT(&own);
            }),
            1);
}

TEST_F(ConfinementTest, BadOptionsAreNamed) {
  Confinement confinement;
  EXPECT_EQ(Confine({.memory_bytes = -1}, confinement).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Confine({.open_files = 3}, confinement).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Confine({.cpus = -1}, confinement).code(), absl::StatusCode::kInvalidArgument);
  if (!Holds(&Confinement::files)) GTEST_SKIP() << "This kernel has no Landlock";
  options_.writable = {folder_ / "absent"};
  EXPECT_EQ(Confined([] { return 0; }), 250);
}

}  // namespace
}  // namespace qpruner::engine
