#include "worker/worker_loop.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "base/stoppable_sleep.h"
#include "base/utf8.h"
#include "google/protobuf/empty.pb.h"
#include "google/protobuf/util/time_util.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "proto/task_uris.h"
#include "spdlog/spdlog.h"
#include "worker/artifact_transfer.h"
#include "worker/direct_transfer.h"

namespace qpruner::worker {

namespace fs = std::filesystem;
using google::protobuf::util::TimeUtil;
using internal::v1::AcquireTaskRequest;
using internal::v1::AcquireTaskResponse;
using internal::v1::ArtifactRef;
using internal::v1::CompleteTaskRequest;
using internal::v1::EngineReply;
using internal::v1::EngineRequest;
using internal::v1::Lease;
using internal::v1::RegisterWorkerRequest;
using internal::v1::RegisterWorkerResponse;
using internal::v1::TaskResult;
using internal::v1::TaskSpec;
using internal::v1::WorkerService;

namespace {

// Of calls that the server answers at once.
constexpr absl::Duration kCallDeadline = absl::Seconds(30);
// Progress is relayed at least so often, however long the lease.
constexpr absl::Duration kProgressInterval = absl::Seconds(1);
// A draining worker has little time; the server finds out by the lease if this is not enough.
constexpr absl::Duration kHandBackDeadline = absl::Seconds(3);

// For a call that waits for a server that is away. A call that does not would fail at once, and
// leave nobody to bring gRPC's connection forward until the next one: a server that is back would
// be found after many seconds.
void SetDeadline(grpc::ClientContext& context, absl::Duration from_now) {
  context.set_wait_for_ready(true);
  context.set_deadline(absl::ToChronoTime(absl::Now() + from_now));
}

// The server is away or busy: the same call may well succeed later. A server that refuses for want
// of something that others will give back says when to come again; other exhaustions stay.
bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         (absl::IsResourceExhausted(status) && RetryDelay(status).has_value());
}

// Before the next try: no less than what the server asked for.
absl::Duration NextDelay(Backoff& backoff, const absl::Status& failure) {
  return std::max(backoff.Next(), RetryDelay(failure).value_or(absl::ZeroDuration()));
}

// Failures of this worker, not of the job's input: the server shall try elsewhere. Codes that would
// end the job for good are for the engine to give.
absl::Status WorkerFailure(const absl::Status& status, absl::string_view what) {
  const std::string message = absl::StrCat(what, ": ", absl::string_view(status.message()));
  return IsTransient(status) ? absl::UnavailableError(message) : absl::InternalError(message);
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerLoop>> WorkerLoop::Create(Options options,
                                                               WorkerService::StubInterface& server,
                                                               Clock& clock) {
  ASSIGN_OR_RETURN(auto cache, ArtifactCache::Open(absl::StrCat(options.data_dir, "/cache"),
                                                   options.max_cache_bytes));
  ASSIGN_OR_RETURN(auto lock, FolderLock::Take(options.data_dir));
  // Of a process that was killed in the middle of a task.
  const TaskFolders folders(options.data_dir);
  RETURN_IF_ERROR(folders.Create());
  folders.Clear();
  options.engine.scratch_dir = folders.scratch;
  return std::unique_ptr<WorkerLoop>(
      new WorkerLoop(std::move(options), server, clock, std::move(cache), std::move(lock)));
}

WorkerLoop::WorkerLoop(Options options, WorkerService::StubInterface& server, Clock& clock,
                       std::unique_ptr<ArtifactCache> cache, std::unique_ptr<FolderLock> lock)
    : options_(std::move(options)),
      server_(server),
      clock_(clock),
      fetch_urls_(clock),
      upload_urls_(clock),
      file_roots_(options_.model_roots),
      model_sources_(options_.model_sources),
      folders_(options_.data_dir),
      cache_(std::move(cache)),
      lock_(std::move(lock)) {}

absl::Status WorkerLoop::Run(std::stop_token drain) {
  RETURN_IF_ERROR(EnsureEngine(""));
  RETURN_IF_ERROR(Register(drain));
  Backoff backoff(options_.reconnect, std::hash<std::string>()(options_.incarnation));
  while (!drain.stop_requested()) {
    AcquireTaskRequest request;
    request.set_worker(options_.worker);
    request.set_incarnation(options_.incarnation);
    *request.mutable_wait_time() =
        TimeUtil::MillisecondsToDuration(absl::ToInt64Milliseconds(options_.acquire_wait));
    if (engine_ != nullptr && engine_->alive()) request.set_prepared_job(engine_job_);
    AcquireTaskResponse response;
    grpc::ClientContext context;
    SetDeadline(context, options_.acquire_wait + kCallDeadline);
    absl::Status status;
    {
      const std::stop_callback cancel(drain, [&context] { context.TryCancel(); });
      status = FromGrpcStatus(server_.AcquireTask(&context, request, &response));
    }
    if (status.ok()) {
      backoff.Reset();
      if (response.has_lease()) WorkOn(response.lease(), response.task(), drain);
    } else if (absl::IsFailedPrecondition(status)) {
      RETURN_IF_ERROR(Register(drain));
    } else if (ErrorReason(status) == "WORKER_REPLACED") {
      // Registering again would take the other's task from it, and it would do the same in turn.
      return absl::AbortedError(absl::StrCat("Another process works under the name ",
                                             options_.worker,
                                             ": give each worker a name of its own (--name)"));
    } else if (!drain.stop_requested()) {
      spdlog::warn("asking for a task failed: {}", std::string(status.message()));
      SleepUnlessStopped(drain, NextDelay(backoff, status));
    }
  }
  engine_.reset();
  return absl::OkStatus();
}

absl::Status WorkerLoop::EnsureEngine(const std::string& job) {
  if (engine_ != nullptr && engine_->alive() && (engine_job_.empty() || engine_job_ == job)) {
    engine_job_ = job;
    return absl::OkStatus();
  }
  engine_.reset();  // Its memory is free before the next one asks for some.
  ASSIGN_OR_RETURN(engine_, EngineProcess::Start(options_.engine));
  engine_job_ = job;
  const EngineReply::Hello& hello = engine_->hello();
  spdlog::info("engine {} runs as process {} on {}, confined in: {}", hello.version(),
               engine_->pid(), hello.device(), hello.confinement());
  for (const std::string& missing : hello.not_confined()) {
    spdlog::warn("the engine is not confined in {}", missing);
  }
  return absl::OkStatus();
}

absl::Status WorkerLoop::Register(const std::stop_token& drain) {
  RegisterWorkerRequest request;
  request.set_worker(options_.worker);
  request.set_incarnation(options_.incarnation);
  if (engine_ != nullptr) {
    request.set_device(engine_->hello().device());
    request.set_device_memory_bytes(engine_->hello().device_memory_bytes());
  }
  request.set_version(options_.version);
  if (!options_.model_roots.empty()) request.add_readable_uris("file:///");
  for (std::string& uri : model_sources_.Prefixes()) request.add_readable_uris(std::move(uri));
  // What says nothing may get anything.
  if (request.readable_uris().empty()) request.add_readable_uris("builtin://");
  RegisterWorkerResponse response;
  const absl::Status status = WithReconnect(drain, "registering", [&] {
    grpc::ClientContext context;
    SetDeadline(context, kCallDeadline);
    const std::stop_callback cancel(drain, [&context] { context.TryCancel(); });
    return FromGrpcStatus(server_.RegisterWorker(&context, request, &response));
  });
  if (drain.stop_requested()) return absl::OkStatus();
  RETURN_IF_ERROR(status);
  lease_options_.lease_duration =
      absl::Milliseconds(TimeUtil::DurationToMilliseconds(response.lease_duration()));
  lease_options_.heartbeat_interval =
      std::min(kProgressInterval,
               absl::Milliseconds(TimeUtil::DurationToMilliseconds(response.heartbeat_interval())));
  spdlog::info("registered as {}", options_.worker);
  return absl::OkStatus();
}

void WorkerLoop::WorkOn(const Lease& lease, const TaskSpec& task, const std::stop_token& drain) {
  spdlog::info("{} {} attempt {}", lease.job(), lease.task(), lease.attempt());
  std::stop_source stop;
  LeaseKeeper keeper(server_, clock_, lease, lease_options_, [&stop] { stop.request_stop(); });
  absl::StatusOr<TaskResult> outcome = absl::UnknownError("");
  {
    const std::stop_callback stop_on_drain(drain, [&stop] { stop.request_stop(); });
    outcome = Execute(lease, task, keeper, stop.get_token());
  }
  folders_.Clear();
  cache_->Trim();

  const LeaseKeeper::Loss loss = keeper.loss();
  if (loss == LeaseKeeper::Loss::kAbortRequested) {
    outcome = absl::CancelledError("Ended as the server asked");
  } else if (loss != LeaseKeeper::Loss::kNone && loss != LeaseKeeper::Loss::kReturnRequested) {
    spdlog::warn("{} {} was lost with its lease", lease.job(), lease.task());
    return;
  }

  CompleteTaskRequest request;
  *request.mutable_lease() = lease;
  for (v1::JobEvent::LogLine& line : keeper.TakeLogs()) *request.add_logs() = std::move(line);
  if (outcome.ok()) {
    *request.mutable_result() = *std::move(outcome);
  } else if (loss == LeaseKeeper::Loss::kReturnRequested) {
    request.mutable_returned()->set_reason("The job is paused");
  } else if (drain.stop_requested() && loss == LeaseKeeper::Loss::kNone) {
    request.mutable_returned()->set_reason("Worker is draining");
  } else {
    *request.mutable_error() = ToRpcStatus(outcome.status());
  }
  // A result is worth waiting for the server as long as the lease lasts. An abort or a pause has no
  // lease to keep, a drain no time.
  std::stop_source give_up;
  const bool brief = drain.stop_requested() || loss == LeaseKeeper::Loss::kAbortRequested ||
                     loss == LeaseKeeper::Loss::kReturnRequested;
  const std::stop_callback on_lost(stop.get_token(), [&] {
    if (!brief) give_up.request_stop();
  });
  const absl::Duration brief_end = RealClock().Monotonic() + kHandBackDeadline;
  const absl::Status completed = WithReconnect(give_up.get_token(), "completing the task", [&] {
    google::protobuf::Empty response;
    grpc::ClientContext context;
    SetDeadline(context, brief ? brief_end - RealClock().Monotonic() : kCallDeadline);
    const std::stop_callback cancel(give_up.get_token(), [&context] { context.TryCancel(); });
    const absl::Status status = FromGrpcStatus(server_.CompleteTask(&context, request, &response));
    if (brief && RealClock().Monotonic() >= brief_end) give_up.request_stop();
    return status;
  });
  if (completed.ok()) {
    spdlog::info("{} {} completed: {}", lease.job(), lease.task(),
                 request.has_error()      ? request.error().message()
                 : request.has_returned() ? request.returned().reason()
                                          : "OK");
  } else {
    spdlog::warn("{} {} could not be completed: {}", lease.job(), lease.task(),
                 std::string(completed.message()));
  }
}

absl::StatusOr<std::string> WorkerLoop::FetchModel(const TaskSpec& task,
                                                   const std::string& input_dir,
                                                   LeaseKeeper& keeper,
                                                   const std::stop_token& stop) {
  const std::string& uri = task.spec().model().uri();
  if (!ReadsOriginalModel(task) || !ModelSources::Fetches(uri)) return std::string();
  const std::string folder = absl::StrCat(input_dir, "/", kSourceFolder);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    return WorkerFailure(absl::ErrnoToStatus(error.value(), folder), "Cannot make a folder");
  }
  auto fetched = model_sources_.Fetch(
      uri, folder, *cache_,
      [&keeper](const std::string& line) {
        EngineReply::TaskProgress progress;
        progress.set_message(ToUtf8(line));
        keeper.Report(progress);
      },
      stop);
  // What these say of the model is for the job to end with. The others, among them credentials that
  // have expired, a clock that is wrong and a certificate that is not trusted here, are this
  // worker's: another one may do better.
  switch (fetched.status().code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kCancelled:
      return fetched;
    default:
      return WorkerFailure(fetched.status(), absl::StrCat("Cannot fetch ", uri));
  }
}

absl::StatusOr<TaskResult> WorkerLoop::Execute(const Lease& lease, const TaskSpec& task,
                                               LeaseKeeper& keeper, const std::stop_token& stop) {
  if (absl::Status there = folders_.Create(); !there.ok()) {
    return WorkerFailure(there, "Worker cannot create the task's folders");
  }
  const std::string& input_dir = folders_.inputs;
  const std::string& output_dir = folders_.outputs;

  RETURN_IF_ERROR(file_roots_.Check(task.spec()));
  for (const ArtifactRef& ref : task.inputs()) {
    if (!IsArtifactPath(ref.path())) {
      return absl::InternalError(absl::StrCat("Not a path of an artifact: ", ref.path()));
    }
    EngineReply::TaskProgress progress;
    progress.set_message(absl::StrCat("fetching ", ref.path()));
    keeper.Report(progress);
    const absl::Status fetched = WithReconnect(stop, "fetching an input", [&] {
      int fetches = 0;
      return cache_->Provide(ref, absl::StrCat(input_dir, "/", ref.path()),
                             [&](int64_t offset, const ArtifactCache::Sink& sink) {
                               // A second one: the first brought something else.
                               if (++fetches > 1) fetch_urls_.Pause();
                               return FetchDirectly(fetch_urls_, server_, lease, ref.sha256(),
                                                    offset, sink, stop);
                             });
    });
    if (!fetched.ok()) return WorkerFailure(fetched, absl::StrCat("Cannot fetch ", ref.path()));
  }

  ASSIGN_OR_RETURN(const std::string fetched_model, FetchModel(task, input_dir, keeper, stop));

  if (absl::Status started = EnsureEngine(lease.job()); !started.ok()) {
    return WorkerFailure(started, "Engine does not start");
  }
  EngineRequest request;
  *request.mutable_task() = task;
  request.set_input_dir(input_dir);
  request.set_output_dir(output_dir);
  request.set_builtin_dir(options_.builtin_dir);
  TaskUploads uploads(upload_urls_, server_, lease, task, output_dir);
  absl::StatusOr<TaskResult> ran = absl::UnknownError("");
  {
    CheckpointSaver saver(
        [&](const TaskUploads::Files& files) { SaveCheckpoint(files, uploads, output_dir, stop); });
    ran = engine_->Run(std::move(request), stop, [&](const EngineReply::TaskProgress& progress) {
      keeper.Report(progress);
      if (!progress.checkpoint().empty()) saver.Save(progress.checkpoint());
    });
    // An engine that died leaves its files.
    saver.Finish(/*wanted=*/!ran.ok());
  }
  ASSIGN_OR_RETURN(TaskResult result, std::move(ran));

  if (!fetched_model.empty() && result.has_prepare()) {
    result.mutable_prepare()->set_resolved_model_uri(fetched_model);
  }

  for (const ArtifactRef& ref : result.outputs()) {
    EngineReply::TaskProgress progress;
    progress.set_fraction(1);
    progress.set_message(absl::StrCat("uploading ", ref.path()));
    keeper.Report(progress);
    const absl::Status uploaded =
        WithReconnect(stop, "uploading an output", [&] { return uploads.Upload(ref, stop); });
    if (!uploaded.ok()) return WorkerFailure(uploaded, absl::StrCat("Cannot upload ", ref.path()));
    // The next task of this job may well read it.
    cache_->Adopt(ref, absl::StrCat(output_dir, "/", ref.path()));
  }
  return result;
}

void WorkerLoop::SaveCheckpoint(const TaskUploads::Files& files, TaskUploads& uploads,
                                const std::string& output_dir, const std::stop_token& stop) {
  // Tried once: the engine waits for no one, and the next one comes soon.
  const absl::Status saved = uploads.SaveCheckpoint(files, kCallDeadline, stop);
  if (!saved.ok()) {
    spdlog::warn("checkpoint {} was not saved: {}", files.rbegin()->path(),
                 std::string(saved.message()));
    return;
  }
  // The next attempt may well be this worker's. Other files than outputs would be kept for nothing:
  // each takes the place of one before.
  for (const ArtifactRef& file : files) {
    if (CheckpointPath(file.path()) != file.path()) {
      cache_->Share(file, absl::StrCat(output_dir, "/", file.path()));
    }
  }
}

absl::Status WorkerLoop::WithReconnect(const std::stop_token& stop, absl::string_view what,
                                       const std::function<absl::Status()>& call) {
  Backoff backoff(options_.reconnect, std::hash<std::string>()(options_.incarnation));
  while (true) {
    const absl::Status status = call();
    if (status.ok() || !IsTransient(status) || stop.stop_requested()) return status;
    spdlog::warn("{} failed, trying again: {}", std::string(what), std::string(status.message()));
    if (!SleepUnlessStopped(stop, NextDelay(backoff, status))) return status;
  }
}

}  // namespace qpruner::worker
