// A child process in a process group of its own, without a shell.
#ifndef QPRUNER_BASE_CHILD_PROCESS_H_
#define QPRUNER_BASE_CHILD_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace qpruner {

// Thread-compatible. Destroying it kills the process group and reaps the child.
class ChildProcess {
 public:
  struct Options {
    // argv[0] is the program's path; PATH is not searched.
    std::vector<std::string> argv;
    // The child gets `inherited_fds[i]` as descriptor 3 + i; all others are closed.
    std::vector<int> inherited_fds;
    // The child gets this signal when the thread that spawned it ends: spawn from a thread that
    // lives as long as the child shall. 0: none.
    int parent_death_signal = 0;
    // "NAME=value". Unset: this process's own environment.
    std::optional<std::vector<std::string>> environment;
    // Appended to it.
    std::vector<std::string> extra_environment;
    // Standard output and error; empty: this process's own.
    std::string output_path;
  };

  // NOT_FOUND or PERMISSION_DENIED: the program cannot be run. Other codes: fork failed.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Spawn(const Options& options);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // The wait status if the child has ended; does not block.
  std::optional<int> Poll();
  // Waits for the end, at most `timeout` (real time). False: still running.
  bool WaitFor(absl::Duration timeout);
  // Signals the whole group, if the child has not been reaped.
  void SignalGroup(int signal);
  // SIGTERM, `grace`, then SIGKILL to the group; reaps.
  void Terminate(absl::Duration grace);
  // SIGKILL to the group; reaps.
  void Kill();

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}
  const pid_t pid_;
  std::optional<int> wait_status_;
};

// "exited with status 3" or "killed by signal 9 (Killed)".
std::string DescribeWaitStatus(int wait_status);

}  // namespace qpruner

#endif  // QPRUNER_BASE_CHILD_PROCESS_H_
