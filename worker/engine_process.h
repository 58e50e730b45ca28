// The engine as the agent sees it: a child process that is given one task at a time.
#ifndef QPRUNER_WORKER_ENGINE_PROCESS_H_
#define QPRUNER_WORKER_ENGINE_PROCESS_H_

#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/child_process.h"
#include "proto/message_stream.h"
#include "qpruner/internal/v1/engine.pb.h"

namespace qpruner::worker {

// ErrorInfo reason of a task whose engine process ended under it.
inline constexpr char kEngineDied[] = "ENGINE_DIED";

// Runs one task at a time; its methods are for one thread. Destroying it kills the engine's process
// group. The engine also dies with the thread that started it, so that thread must outlive it.
class EngineProcess {
 public:
  struct Options {
    // Program and arguments.
    std::vector<std::string> argv;
    // Where the engine makes files that it needs only itself. Empty: the system's place.
    std::string scratch_dir;
    // The engine loads LibTorch and looks for a device before it says hello.
    absl::Duration start_limit = absl::Seconds(120);
    // The engine speaks every second of long work. One that is silent for so long hangs (a stuck
    // device, a stopped process) and is killed.
    absl::Duration silence_limit = absl::Seconds(120);
  };

  // NOT_FOUND, PERMISSION_DENIED: no such program. UNAVAILABLE: it ended or kept silent.
  static absl::StatusOr<std::unique_ptr<EngineProcess>> Start(Options options);
  ~EngineProcess();

  const internal::v1::EngineReply::Hello& hello() const { return hello_; }
  pid_t pid() const { return pid_; }
  // False once the process has ended or was given up: start another one.
  bool alive();

  // Runs one task and returns its result. `on_progress` is called on this thread. A stop kills the
  // whole process group at once, from the thread that requests it.
  // CANCELLED: stopped. UNAVAILABLE with ErrorInfo ENGINE_DIED says how the process ended. All
  // other errors are the engine's own about the task; it is ready for the next one, but with
  // ErrorInfo kDeviceLost, whose process is ended.
  absl::StatusOr<internal::v1::TaskResult> Run(
      internal::v1::EngineRequest request, std::stop_token stop,
      const std::function<void(const internal::v1::EngineReply::TaskProgress&)>& on_progress);

 private:
  EngineProcess(Options options, std::unique_ptr<ChildProcess> child, int fd);

  // Reads a reply that comes within `limit`; notices a dead process even while a descendant of it
  // keeps the socket open. UNAVAILABLE, and the group is dead, if none comes.
  absl::Status ReadReply(internal::v1::EngineReply& reply, absl::Duration limit);
  // True if the child has ended; it stays unreaped, so that its group can still be killed.
  bool Ended() const;
  // Kills the group, reaps the child and wakes a reader. Thread-safe.
  void Kill();
  absl::Status Died(absl::string_view circumstance);

  const Options options_;
  const pid_t pid_;
  MessageStream stream_;
  internal::v1::EngineReply::Hello hello_;
  int64_t last_request_id_ = 0;
  // Whether the group was killed, and the child.
  absl::Mutex mutex_;
  const std::unique_ptr<ChildProcess> child_ ABSL_PT_GUARDED_BY(mutex_);
  bool killed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_ENGINE_PROCESS_H_
