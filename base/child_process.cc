#include "base/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"

extern char** environ;

namespace qpruner {
namespace {

// Runs between fork and exec: async-signal-safe calls only. Returns only on failure.
int ExecChild(char* const* argv, char* const* envp, const std::vector<int>& fds, pid_t parent,
              int death_signal, int output_fd, int error_pipe) {
  setpgid(0, 0);
  if (death_signal != 0) {
    prctl(PR_SET_PDEATHSIG, death_signal);
    // The parent may have died before the call above.
    if (getppid() != parent) _exit(127);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (output_fd >= 0) {
    dup2(output_fd, STDOUT_FILENO);
    dup2(output_fd, STDERR_FILENO);
  }
  // First out of the way of the targets 3.., then into place.
  const int count = static_cast<int>(fds.size());
  int moved_pipe = fcntl(error_pipe, F_DUPFD_CLOEXEC, 3 + count);
  if (moved_pipe < 0) return errno;
  int moved[16];
  for (int i = 0; i < count; ++i) {
    moved[i] = fcntl(fds[i], F_DUPFD, 64);
    if (moved[i] < 0) return errno;
  }
  for (int i = 0; i < count; ++i) {
    if (dup2(moved[i], 3 + i) < 0) return errno;
  }
  // Everything else closes at exec, the error pipe with it.
  syscall(SYS_close_range, 3 + count, ~0U, CLOSE_RANGE_CLOEXEC);
  execve(argv[0], argv, envp);
  const int error = errno;
  [[maybe_unused]] ssize_t ignored = write(moved_pipe, &error, sizeof error);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Spawn(const Options& options) {
  if (options.argv.empty() || options.inherited_fds.size() > 16) {
    return absl::InvalidArgumentError("A child needs a program and at most 16 descriptors");
  }
  std::vector<char*> argv;
  for (const std::string& arg : options.argv) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  std::vector<char*> envp;
  if (options.environment) {
    for (const std::string& entry : *options.environment) {
      envp.push_back(const_cast<char*>(entry.c_str()));
    }
  } else {
    for (char** entry = environ; *entry != nullptr; ++entry) envp.push_back(*entry);
  }
  for (const std::string& entry : options.extra_environment) {
    envp.push_back(const_cast<char*>(entry.c_str()));
  }
  envp.push_back(nullptr);

  int output_fd = -1;
  if (!options.output_path.empty()) {
    output_fd = open(options.output_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (output_fd < 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open ", options.output_path));
    }
  }
  int error_pipe[2];
  if (pipe2(error_pipe, O_CLOEXEC) != 0) {
    const int error = errno;
    if (output_fd >= 0) close(output_fd);
    return absl::ErrnoToStatus(error, "Cannot create a pipe");
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    const int error = ExecChild(argv.data(), envp.data(), options.inherited_fds, parent,
                                options.parent_death_signal, output_fd, error_pipe[1]);
    [[maybe_unused]] ssize_t ignored = write(error_pipe[1], &error, sizeof error);
    _exit(127);
  }
  const int fork_error = errno;
  close(error_pipe[1]);
  if (output_fd >= 0) close(output_fd);
  if (pid < 0) {
    close(error_pipe[0]);
    return absl::ErrnoToStatus(fork_error, "Cannot fork");
  }
  setpgid(pid, pid);  // Both sides do it, so that neither runs ahead of it.
  int exec_error = 0;
  ssize_t got;
  do {
    got = read(error_pipe[0], &exec_error, sizeof exec_error);
  } while (got < 0 && errno == EINTR);
  close(error_pipe[0]);
  if (got > 0) {
    waitpid(pid, nullptr, 0);
    return absl::ErrnoToStatus(exec_error, absl::StrCat("Cannot run ", options.argv[0]));
  }
  return std::unique_ptr<ChildProcess>(new ChildProcess(pid));
}

ChildProcess::~ChildProcess() { Kill(); }

std::optional<int> ChildProcess::Poll() {
  if (wait_status_) return wait_status_;
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) == pid_) wait_status_ = status;
  return wait_status_;
}

bool ChildProcess::WaitFor(absl::Duration timeout) {
  const absl::Duration deadline = RealClock().Monotonic() + timeout;
  while (!Poll()) {
    if (RealClock().Monotonic() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

void ChildProcess::SignalGroup(int signal) {
  // After reaping, the number may belong to somebody else.
  if (!Poll()) kill(-pid_, signal);
}

void ChildProcess::Terminate(absl::Duration grace) {
  SignalGroup(SIGTERM);
  WaitFor(grace);
  Kill();
}

void ChildProcess::Kill() {
  if (wait_status_) return;
  // Before reaping: the group then still exists, whatever the child's own state.
  kill(-pid_, SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  wait_status_ = status;
}

std::string DescribeWaitStatus(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("killed by signal ", WTERMSIG(wait_status), " (",
                        strsignal(WTERMSIG(wait_status)), ")");
  }
  return absl::StrCat("exited with status ", WEXITSTATUS(wait_status));
}

}  // namespace qpruner
