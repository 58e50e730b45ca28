// The agent: takes tasks from the server, has the engine work on them, brings back what they made.
#ifndef QPRUNER_WORKER_WORKER_LOOP_H_
#define QPRUNER_WORKER_WORKER_LOOP_H_

#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/backoff.h"
#include "base/clock.h"
#include "base/folder_lock.h"
#include "net/signed_url_transfer.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "worker/artifact_cache.h"
#include "worker/engine_process.h"
#include "worker/lease_keeper.h"
#include "worker/sources/file_roots.h"
#include "worker/sources/model_sources.h"
#include "worker/task_folders.h"
#include "worker/task_uploads.h"

namespace qpruner::worker {

// One task at a time. Not thread-safe.
class WorkerLoop {
 public:
  struct Options {
    // The worker's name: stable over restarts, and one process's at a time.
    std::string worker;
    // This process, different for each.
    std::string incarnation;
    // `major.minor.patch`.
    std::string version;
    // Scratch: the artifact cache and the task in work. One process owns it.
    std::string data_dir;
    // What builtin:// means to the engine.
    std::string builtin_dir;
    EngineProcess::Options engine;
    // How long the server may hold an AcquireTask.
    absl::Duration acquire_wait = absl::Seconds(20);
    // Between attempts to reach a server that is away.
    Backoff::Options reconnect;
    // Of artifacts that no task uses now.
    int64_t max_cache_bytes = int64_t{32} << 30;
    // file:// models and texts must lie below one of these folders.
    std::vector<std::string> model_roots = {"/"};
    ModelSourceOptions model_sources;
  };

  // Takes the data folder. FAILED_PRECONDITION: another process holds it.
  static absl::StatusOr<std::unique_ptr<WorkerLoop>> Create(
      Options options, internal::v1::WorkerService::StubInterface& server, Clock& clock);

  // Works until `drain` is requested: then it ends the engine, hands the task in work back and
  // returns OK. A server that is away is waited for. The engine belongs to the calling thread (see
  // EngineProcess). Errors: the engine cannot be started at all; ABORTED: another process has taken
  // this worker's name.
  absl::Status Run(std::stop_token drain);

 private:
  WorkerLoop(Options options, internal::v1::WorkerService::StubInterface& server, Clock& clock,
             std::unique_ptr<ArtifactCache> cache, std::unique_ptr<FolderLock> lock);

  // Starts an engine unless there is a live one that has worked for no other job than `job`.
  absl::Status EnsureEngine(const std::string& job);
  // OK: registered, or draining.
  absl::Status Register(const std::stop_token& drain);
  void WorkOn(const internal::v1::Lease& lease, const internal::v1::TaskSpec& task,
              const std::stop_token& drain);
  // Puts the model of a task that reads one where the engine looks for it, if only the agent can
  // reach it. Returns a URI of exactly what was fetched; empty: nothing was.
  absl::StatusOr<std::string> FetchModel(const internal::v1::TaskSpec& task,
                                         const std::string& input_dir, LeaseKeeper& keeper,
                                         const std::stop_token& stop);
  // Fetches inputs, runs the engine, uploads outputs.
  absl::StatusOr<internal::v1::TaskResult> Execute(const internal::v1::Lease& lease,
                                                   const internal::v1::TaskSpec& task,
                                                   LeaseKeeper& keeper,
                                                   const std::stop_token& stop);
  // Uploads what the engine has saved and tells the server. What fails is logged: it costs a later
  // attempt time, not its result. Called from a thread of its own, and uses nothing that is in use
  // while the engine runs.
  void SaveCheckpoint(const TaskUploads::Files& files, TaskUploads& uploads,
                      const std::string& output_dir, const std::stop_token& stop);
  // Repeats `call` while it fails because the server is away, until `stop`.
  absl::Status WithReconnect(const std::stop_token& stop, absl::string_view what,
                             const std::function<absl::Status()>& call);

  const Options options_;
  internal::v1::WorkerService::StubInterface& server_;
  Clock& clock_;
  SignedUrlTransfer fetch_urls_;
  SignedUrlTransfer upload_urls_;
  const FileRoots file_roots_;
  ModelSources model_sources_;
  const TaskFolders folders_;
  const std::unique_ptr<ArtifactCache> cache_;
  const std::unique_ptr<FolderLock> lock_;
  LeaseKeeper::Options lease_options_;
  std::unique_ptr<EngineProcess> engine_;
  // The job that engine_ has worked for; empty if none yet.
  std::string engine_job_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_WORKER_LOOP_H_
