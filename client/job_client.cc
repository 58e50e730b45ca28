#include "client/job_client.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/durable_file.h"
#include "base/id_generator.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/write_all.h"
#include "grpcpp/support/channel_arguments.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"

namespace qpruner {
namespace {

class SystemSleeper final : public Sleeper {
 public:
  void SleepFor(absl::Duration duration, Cancellation* cancellation) override {
    if (cancellation != nullptr) {
      cancellation->WaitFor(duration);
    } else {
      absl::SleepFor(duration);
    }
  }
};

// The partial file of one download: its descriptor, lock, size and running hash.
class PartialFile {
 public:
  static absl::StatusOr<std::unique_ptr<PartialFile>> Open(const std::string& path) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot create ", path));
    auto file = std::unique_ptr<PartialFile>(new PartialFile(path, fd));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      return absl::AbortedError(absl::StrCat("Another process is downloading to ", path));
    }
    return file;
  }
  ~PartialFile() { close(fd_); }

  // Hashes what an earlier download left, unless it is more than `limit`.
  absl::Status TakeUp(int64_t limit) {
    struct stat info {};
    if (fstat(fd_, &info) != 0) return Failure("Cannot stat");
    if (info.st_size > limit) return Restart();
    char buffer[1 << 16];
    ssize_t got;
    while ((got = read(fd_, buffer, sizeof buffer)) != 0) {
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Failure("Cannot read");
      hash_->Update(absl::string_view(buffer, static_cast<size_t>(got)));
      size_ += got;
    }
    return absl::OkStatus();
  }
  absl::Status Restart() {
    if (ftruncate(fd_, 0) != 0 || lseek(fd_, 0, SEEK_SET) != 0) return Failure("Cannot empty");
    hash_.emplace();
    size_ = 0;
    return absl::OkStatus();
  }
  absl::Status Append(absl::string_view data) {
    hash_->Update(data);
    size_ += static_cast<int64_t>(data.size());
    return WriteAll(fd_, data, path_);
  }
  absl::Status MoveTo(const std::string& path) {
    if (fsync(fd_) != 0) return Failure("Cannot sync");
    if (rename(path_.c_str(), path.c_str()) != 0) return Failure("Cannot rename");
    return SyncFolder(std::filesystem::path(path).parent_path().string());
  }
  int64_t size() const { return size_; }
  // Call once, after the last byte.
  std::string HexDigest() { return hash_->HexDigest(); }
  void Remove() { unlink(path_.c_str()); }

 private:
  PartialFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) { hash_.emplace(); }
  absl::Status Failure(absl::string_view what) const {
    return absl::ErrnoToStatus(errno, absl::StrCat(what, " ", path_));
  }

  const std::string path_;
  const int fd_;
  int64_t size_ = 0;
  std::optional<Sha256> hash_;
};

}  // namespace

Sleeper& RealSleeper() {
  static auto& sleeper = *new SystemSleeper;
  return sleeper;
}

bool IsFinal(v1::CompressionJob::State state) {
  return state == v1::CompressionJob::SUCCEEDED || state == v1::CompressionJob::FAILED ||
         state == v1::CompressionJob::CANCELLED;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const std::string& address,
                                                           const ChannelSecurity& security) {
  grpc::ChannelArguments arguments;
  // gRPC's own reconnects must not be slower than the back-off above them.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  return OpenSecureChannel(address, security, arguments);
}

std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address) {
  return OpenChannel(address, ChannelSecurity()).value();
}

class JobClient::Retry {
 public:
  Retry(const JobClient& client, absl::Duration patience, Cancellation* cancellation)
      : client_(client),
        patience_(patience),
        cancellation_(cancellation),
        backoff_(client.options_.backoff, static_cast<uint64_t>(absl::GetCurrentTimeNanos())),
        good_since_(client.clock_.Monotonic()) {}

  // Something arrived.
  void Progress(absl::Duration patience) {
    patience_ = patience;
    good_since_ = client_.clock_.Monotonic();
    backoff_.Reset();
  }

  // Waits and returns true if `failure` may be tried again.
  bool Again(const absl::Status& failure) {
    const std::optional<absl::Duration> told = RetryDelay(failure);
    const bool busy = absl::IsResourceExhausted(failure) && told;
    if (!absl::IsUnavailable(failure) && !busy) return false;
    const absl::Duration delay = std::max(backoff_.Next(), told.value_or(absl::ZeroDuration()));
    const absl::Duration patience =
        busy ? std::max(patience_, client_.options_.busy_patience) : patience_;
    if (client_.clock_.Monotonic() + delay - good_since_ > patience) return false;
    if (client_.options_.on_retry) client_.options_.on_retry(failure, delay);
    client_.sleeper_.SleepFor(delay, cancellation_);
    return cancellation_ == nullptr || !cancellation_->cancelled();
  }

 private:
  const JobClient& client_;
  absl::Duration patience_;
  Cancellation* const cancellation_;
  Backoff backoff_;
  absl::Duration good_since_;
};

JobClient::JobClient(std::shared_ptr<grpc::Channel> channel, Options options, Clock& clock,
                     Sleeper& sleeper)
    : stub_(v1::JobService::NewStub(channel)),
      options_(std::move(options)),
      clock_(clock),
      sleeper_(sleeper),
      signed_urls_(clock) {}

template <typename Request, typename Response>
absl::StatusOr<Response> JobClient::Call(grpc::Status (v1::JobService::StubInterface::*method)(
                                             grpc::ClientContext*, const Request&, Response*),
                                         const Request& request, bool repeatable,
                                         Cancellation* cancellation) {
  Retry retry(*this, options_.patience, cancellation);
  for (;;) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + options_.call_timeout));
    Response response;
    const grpc::Status status = ((*stub_).*method)(&context, request, &response);
    if (status.ok()) return response;
    absl::Status failure = FromGrpcStatus(status);
    if (!repeatable) return failure;
    if (retry.Again(failure)) continue;
    if (cancellation == nullptr || !cancellation->cancelled()) return failure;
    return absl::CancelledError(absl::StrCat("Given up: ", failure.message()));
  }
}

absl::StatusOr<v1::CompressionJob> JobClient::CreateJob(v1::CreateJobRequest request,
                                                        Cancellation* cancellation) {
  if (request.request_id().empty()) request.set_request_id(SystemIdGenerator().Hex(16));
  return Call(&v1::JobService::StubInterface::CreateJob, request, /*repeatable=*/true,
              cancellation);
}

absl::StatusOr<v1::CompressionJob> JobClient::GetJob(const std::string& name) {
  v1::GetJobRequest request;
  request.set_name(name);
  return Call(&v1::JobService::StubInterface::GetJob, request, /*repeatable=*/true);
}

absl::StatusOr<v1::ListJobsResponse> JobClient::ListJobs(const v1::ListJobsRequest& request) {
  return Call(&v1::JobService::StubInterface::ListJobs, request, /*repeatable=*/true);
}

absl::StatusOr<v1::CompressionJob> JobClient::PauseJob(const std::string& name) {
  v1::PauseJobRequest request;
  request.set_name(name);
  return Call(&v1::JobService::StubInterface::PauseJob, request, /*repeatable=*/true);
}

absl::StatusOr<v1::CompressionJob> JobClient::ResumeJob(const std::string& name) {
  v1::ResumeJobRequest request;
  request.set_name(name);
  return Call(&v1::JobService::StubInterface::ResumeJob, request, /*repeatable=*/true);
}

absl::StatusOr<v1::CompressionJob> JobClient::CancelJob(const std::string& name) {
  v1::CancelJobRequest request;
  request.set_name(name);
  return Call(&v1::JobService::StubInterface::CancelJob, request, /*repeatable=*/true);
}

absl::Status JobClient::DeleteJob(const std::string& name) {
  v1::DeleteJobRequest request;
  request.set_name(name);
  return Call(&v1::JobService::StubInterface::DeleteJob, request, /*repeatable=*/false).status();
}

absl::StatusOr<std::vector<v1::Trial>> JobClient::ListTrials(const std::string& job) {
  std::vector<v1::Trial> trials;
  v1::ListTrialsRequest request;
  request.set_parent(job);
  request.set_page_size(1000);
  do {
    ASSIGN_OR_RETURN(v1::ListTrialsResponse page,
                     Call(&v1::JobService::StubInterface::ListTrials, request, true));
    for (v1::Trial& trial : *page.mutable_trials()) trials.push_back(std::move(trial));
    if (page.next_page_token() == request.page_token() && !request.page_token().empty()) {
      return absl::DataLossError("The server returned the same page of trials twice");
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return trials;
}

absl::StatusOr<v1::ParetoFront> JobClient::GetParetoFront(const std::string& job) {
  v1::GetParetoFrontRequest request;
  request.set_name(job);
  return Call(&v1::JobService::StubInterface::GetParetoFront, request, /*repeatable=*/true);
}

absl::StatusOr<std::vector<v1::Artifact>> JobClient::ListArtifacts(const std::string& job) {
  v1::ListArtifactsRequest request;
  request.set_parent(job);
  ASSIGN_OR_RETURN(v1::ListArtifactsResponse response,
                   Call(&v1::JobService::StubInterface::ListArtifacts, request, true));
  return std::vector<v1::Artifact>(response.artifacts().begin(), response.artifacts().end());
}

absl::StatusOr<v1::ListCapabilitiesResponse> JobClient::ListCapabilities() {
  return Call(&v1::JobService::StubInterface::ListCapabilities, v1::ListCapabilitiesRequest(),
              true);
}

absl::Status JobClient::WatchJob(const std::string& name, int64_t after_sequence,
                                 const std::function<bool(const v1::JobEvent&)>& on_event,
                                 Cancellation* cancellation) {
  Retry retry(*this, options_.patience, cancellation);
  int64_t last = after_sequence;
  // Where the stream last had a gap; -1 if it had none.
  int64_t gap_after = -1;
  for (;;) {
    grpc::ClientContext context;
    const Cancellation::Attachment attachment(cancellation, &context);
    v1::WatchJobRequest request;
    request.set_name(name);
    request.set_after_sequence(last);
    const auto stream = stub_->WatchJob(&context, request);
    v1::JobEvent event;
    bool gap = false;
    while (!gap && stream->Read(&event)) {
      if (event.sequence() <= last) continue;  // Seen before the connection broke.
      gap = event.sequence() != last + 1;
      if (gap) break;
      last = event.sequence();
      retry.Progress(options_.stream_patience);
      const bool more = on_event(event);
      if (!more || (event.has_state_changed() && IsFinal(event.state_changed().state()))) {
        context.TryCancel();
        stream->Finish();
        return absl::OkStatus();
      }
    }
    if (gap) context.TryCancel();
    absl::Status failure = FromGrpcStatus(stream->Finish());
    if (cancellation != nullptr && cancellation->cancelled()) {
      return absl::CancelledError("The watch was cancelled");
    }
    if (gap) {
      // Once may be a fault of the way; a second time at the same place, the event is gone.
      if (gap_after == last) {
        return absl::DataLossError(
            absl::StrCat("The server left out event ", last + 1, " of ", name));
      }
      gap_after = last;
      failure = absl::UnavailableError("An event was left out");
    } else if (failure.ok()) {
      failure = absl::UnavailableError("The stream ended before the job did");
    }
    if (!retry.Again(failure)) {
      if (cancellation != nullptr && cancellation->cancelled()) {
        return absl::CancelledError("The watch was cancelled");
      }
      return failure;
    }
  }
}

absl::Status JobClient::DownloadArtifact(const v1::Artifact& artifact, const std::string& path,
                                         const std::function<void(int64_t bytes)>& on_progress,
                                         Cancellation* cancellation) {
  if (!IsSha256Hex(artifact.sha256()) || artifact.size_bytes() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Artifact without a size and SHA-256: ", artifact.name()));
  }
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error) &&
      std::filesystem::file_size(path, error) == static_cast<uintmax_t>(artifact.size_bytes())) {
    if (Sha256OfFile(path).value_or("") == artifact.sha256()) {
      if (on_progress) on_progress(artifact.size_bytes());
      return absl::OkStatus();
    }
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  if (!folder.empty() && (std::filesystem::create_directories(folder, error), error)) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot create the folder ", folder));
  }
  ASSIGN_OR_RETURN(
      const std::unique_ptr<PartialFile> partial,
      PartialFile::Open(absl::StrCat(path, ".", artifact.sha256().substr(0, 16), ".partial")));
  RETURN_IF_ERROR(partial->TakeUp(artifact.size_bytes()));
  // Whether there are bytes that this download did not get through the server.
  bool unproven = partial->size() > 0;

  Retry retry(*this, options_.patience, cancellation);
  const auto take = [&](absl::string_view data) -> absl::Status {
    if (static_cast<int64_t>(data.size()) > artifact.size_bytes() - partial->size()) {
      partial->Remove();
      return absl::DataLossError(absl::StrCat(
          "The server sent more than the ", artifact.size_bytes(), " bytes of ", artifact.name()));
    }
    RETURN_IF_ERROR(partial->Append(data));
    retry.Progress(options_.stream_patience);
    if (on_progress) on_progress(partial->size());
    return absl::OkStatus();
  };
  for (;;) {
    absl::Status failure;
    if (partial->size() < artifact.size_bytes() || artifact.size_bytes() == 0) {
      grpc::ClientContext context;
      const Cancellation::Attachment attachment(cancellation, &context);
      v1::DownloadArtifactRequest request;
      request.set_name(artifact.name());
      request.set_offset(partial->size());
      request.set_accept_url(signed_urls_.usable());
      const auto stream = stub_->DownloadArtifact(&context, request);
      v1::DownloadArtifactResponse response;
      v1::SignedUrl url;
      absl::Status local;
      while (local.ok() && stream->Read(&response)) {
        if (response.has_artifact() && response.artifact().sha256() != artifact.sha256()) {
          local = absl::DataLossError(
              absl::StrCat("The server now has other content for ", artifact.name()));
        } else if (response.has_url()) {
          url = std::move(*response.mutable_url());
        } else {
          local = take(response.data());
        }
      }
      if (!local.ok()) context.TryCancel();
      failure = FromGrpcStatus(stream->Finish());
      RETURN_IF_ERROR(local);
      if (failure.ok() && !url.url().empty()) {
        unproven = true;
        failure =
            signed_urls_.Read(url.url(), partial->size(), artifact.size_bytes(), take,
                              cancellation != nullptr ? cancellation->token() : std::stop_token());
        // By another URL, or through the server, which has just answered.
        if (absl::IsUnavailable(failure)) {
          retry.Progress(options_.stream_patience);
          continue;
        }
      }
      if (cancellation != nullptr && cancellation->cancelled()) {
        return absl::CancelledError("The download was cancelled");
      }
      if (failure.ok() && partial->size() < artifact.size_bytes()) {
        failure = absl::UnavailableError("The stream ended before the artifact did");
      }
    }
    if (failure.ok()) {
      const std::string digest = partial->HexDigest();
      if (digest == artifact.sha256()) return partial->MoveTo(path);
      if (!unproven) {
        partial->Remove();
        return absl::DataLossError(absl::StrCat("Damaged on the way: ", artifact.name(),
                                                " has SHA-256 ", digest, ", expected ",
                                                artifact.sha256()));
      }
      // What an earlier download left, or the storage gave, may be at fault: once more from the
      // start, through the server.
      unproven = false;
      signed_urls_.Pause();
      RETURN_IF_ERROR(partial->Restart());
      continue;
    }
    if (!retry.Again(failure)) {
      if (cancellation != nullptr && cancellation->cancelled()) {
        return absl::CancelledError("The download was cancelled");
      }
      return failure;
    }
  }
}

}  // namespace qpruner
