#include "worker/task_uploads.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "google/protobuf/empty.pb.h"
#include "proto/grpc_status.h"
#include "worker/direct_transfer.h"

namespace qpruner::worker {

using internal::v1::ArtifactRef;

namespace {

constexpr char kCheckpointFolder[] = "checkpoint/";

}  // namespace

std::string CheckpointPath(const std::string& output_path) {
  if (absl::StartsWith(output_path, kCheckpointFolder)) return output_path;
  return absl::StrCat(kCheckpointFolder, "outputs/", output_path);
}

TaskUploads::TaskUploads(SignedUrlTransfer& urls,
                         internal::v1::WorkerService::StubInterface& server,
                         internal::v1::Lease lease, const internal::v1::TaskSpec& task,
                         std::string output_dir)
    : urls_(urls), server_(server), lease_(std::move(lease)), output_dir_(std::move(output_dir)) {
  for (const ArtifactRef& input : task.inputs()) {
    if (absl::StartsWith(input.path(), kCheckpointFolder)) saved_.insert(input.sha256());
  }
  stored_ = saved_;
}

absl::Status TaskUploads::Upload(const ArtifactRef& ref, const std::stop_token& stop) {
  if (!IsArtifactPath(ref.path())) {
    return absl::InternalError(absl::StrCat("Engine made a bad path: ", ref.path()));
  }
  if (stored_.count(ref.sha256()) > 0) return absl::OkStatus();
  RETURN_IF_ERROR(UploadDirectly(urls_, server_, lease_, ref,
                                 absl::StrCat(output_dir_, "/", ref.path()), stop));
  stored_.insert(ref.sha256());
  return absl::OkStatus();
}

absl::Status TaskUploads::SaveCheckpoint(const Files& files, absl::Duration call_deadline,
                                         const std::stop_token& stop) {
  internal::v1::SaveCheckpointRequest request;
  *request.mutable_lease() = lease_;
  for (const ArtifactRef& file : files) {
    RETURN_IF_ERROR(Upload(file, stop));
    ArtifactRef& ref = *request.add_ref();
    ref = file;
    ref.set_path(CheckpointPath(file.path()));
  }
  const std::set<std::string> contents = ContentsOf(files);
  // From here on the server may remove what only the earlier one has, whatever it answers.
  for (const std::string& sha256 : saved_) {
    if (contents.count(sha256) == 0) stored_.erase(sha256);
  }
  google::protobuf::Empty response;
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(absl::ToChronoTime(absl::Now() + call_deadline));
  const std::stop_callback cancel(stop, [&context] { context.TryCancel(); });
  const absl::Status saved = FromGrpcStatus(server_.SaveCheckpoint(&context, request, &response));
  if (saved.ok()) saved_.clear();
  saved_.insert(contents.begin(), contents.end());
  return saved;
}

std::set<std::string> TaskUploads::ContentsOf(const Files& files) {
  std::set<std::string> contents;
  for (const ArtifactRef& file : files) contents.insert(file.sha256());
  return contents;
}

CheckpointSaver::CheckpointSaver(std::function<void(const Files& files)> save)
    : save_(std::move(save)), thread_([this] { Work(); }) {}

CheckpointSaver::~CheckpointSaver() {
  if (thread_.joinable()) Finish(/*wanted=*/false);
}

void CheckpointSaver::Save(const Files& files) {
  absl::MutexLock lock(&mutex_);
  waiting_ = files;
  changed_.Signal();
}

void CheckpointSaver::Finish(bool wanted) {
  {
    absl::MutexLock lock(&mutex_);
    if (!wanted) waiting_.reset();
    finishing_ = true;
    changed_.Signal();
  }
  thread_.join();
}

void CheckpointSaver::Work() {
  while (true) {
    Files files;
    {
      absl::MutexLock lock(&mutex_);
      while (!waiting_ && !finishing_) changed_.Wait(&mutex_);
      if (!waiting_) return;
      files.Swap(&*waiting_);
      waiting_.reset();
    }
    save_(files);
  }
}

}  // namespace qpruner::worker
