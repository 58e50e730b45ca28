// Brings what a task makes to the server, each content once.
#ifndef QPRUNER_WORKER_TASK_UPLOADS_H_
#define QPRUNER_WORKER_TASK_UPLOADS_H_

#include <functional>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "net/signed_url_transfer.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"

namespace qpruner::worker {

// Where the next attempt finds a file of the output folder that a checkpoint has (engine.proto).
std::string CheckpointPath(const std::string& output_path);

// Of one lease. Not thread-safe.
class TaskUploads {
 public:
  using Files = google::protobuf::RepeatedPtrField<internal::v1::ArtifactRef>;

  // `urls`, `server` and `task` outlive it.
  TaskUploads(SignedUrlTransfer& urls, internal::v1::WorkerService::StubInterface& server,
              internal::v1::Lease lease, const internal::v1::TaskSpec& task,
              std::string output_dir);

  // Stores the file at ref.path() of the output folder, unless the server keeps its content for
  // this lease anyway. Tried once: codes as UploadArtifact's. INTERNAL: also a bad path.
  absl::Status Upload(const internal::v1::ArtifactRef& ref, const std::stop_token& stop);

  // Stores those of the files, which the engine has told as a checkpoint, that the server does not
  // have, and makes them all the task's checkpoint. Tried once, the call within `call_deadline`.
  absl::Status SaveCheckpoint(const Files& files, absl::Duration call_deadline,
                              const std::stop_token& stop);

 private:
  // Contents of a checkpoint.
  static std::set<std::string> ContentsOf(const Files& files);

  SignedUrlTransfer& urls_;
  internal::v1::WorkerService::StubInterface& server_;
  const internal::v1::Lease lease_;
  const std::string output_dir_;
  // What the server has, and does not remove before the lease ends or a checkpoint without it is
  // saved.
  std::set<std::string> stored_;
  // Of the checkpoint that the server has. After a call with an uncertain end: of both that it may
  // have.
  std::set<std::string> saved_;
};

// Saves checkpoints on a thread of its own, so that the engine is heard meanwhile: the newest of
// those that were told while one was being saved, the others not at all.
class CheckpointSaver {
 public:
  using Files = TaskUploads::Files;

  // `save` is called on the saver's thread.
  explicit CheckpointSaver(std::function<void(const Files& files)> save);
  // As Finish(false).
  ~CheckpointSaver();

  void Save(const Files& files);
  // Waits for the one that is being saved; also for one that waits, if that is `wanted`. Call once,
  // last.
  void Finish(bool wanted);

 private:
  void Work();

  const std::function<void(const Files& files)> save_;
  absl::Mutex mutex_;
  absl::CondVar changed_;
  std::optional<Files> waiting_ ABSL_GUARDED_BY(mutex_);
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_TASK_UPLOADS_H_
