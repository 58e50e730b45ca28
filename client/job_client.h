// A client of JobService that survives what a network does: it repeats what may be repeated, and
// resumes streams where they broke.
//
// Repeated after UNAVAILABLE, with back-off, and after a refusal that says when to come again
// (RESOURCE_EXHAUSTED with RetryInfo: a full queue, too many streams), after that time: reads,
// CreateJob (its request_id makes that safe) and CancelJob, PauseJob and ResumeJob (twice is fine).
// Never repeated: DeleteJob, whose answer could then wrongly be NOT_FOUND. No other code is
// repeated.
#ifndef QPRUNER_CLIENT_JOB_CLIENT_H_
#define QPRUNER_CLIENT_JOB_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/backoff.h"
#include "base/clock.h"
#include "client/cancellation.h"
#include "grpcpp/channel.h"
#include "net/signed_url_transfer.h"
#include "proto/channel_security.h"
#include "qpruner/v1/job_service.grpc.pb.h"

namespace qpruner {

// Waiting as an injected dependency. Thread-safe.
class Sleeper {
 public:
  virtual ~Sleeper() = default;
  // Returns early once `cancellation`, if given, is cancelled.
  virtual void SleepFor(absl::Duration duration, Cancellation* cancellation) = 0;
};

// Really sleeps. Lives for ever.
Sleeper& RealSleeper();

// A channel to "host:port" or "unix:/path". Nothing is connected yet. INVALID_ARGUMENT: as
// OpenSecureChannel.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const std::string& address,
                                                           const ChannelSecurity& security);
// Without TLS or token: for a server on this machine or a network that is trusted.
std::shared_ptr<grpc::Channel> OpenChannel(const std::string& address);

// Thread-safe. Errors keep the server's details (proto/status_codec.h reads them).
class JobClient {
 public:
  struct Options {
    Backoff::Options backoff;
    // How long failures of one call may go on, without any progress, before it is given up. Longer
    // survives a server's restart; shorter tells sooner that there is no server.
    absl::Duration patience = absl::Seconds(5);
    // The same for WatchJob and DownloadArtifact once they have begun.
    absl::Duration stream_patience = absl::Minutes(10);
    // How long a call waits, in all and without progress, for a server that refuses it for now. One
    // that says it will be longer is believed at once.
    absl::Duration busy_patience = absl::Seconds(30);
    // Of one attempt of a unary call.
    absl::Duration call_timeout = absl::Seconds(30);
    // Told of each failure that will be tried again, from the calling thread.
    std::function<void(const absl::Status& failure, absl::Duration delay)> on_retry;
  };

  // `clock` measures patience; `clock` and `sleeper` must outlive the client.
  JobClient(std::shared_ptr<grpc::Channel> channel, Options options, Clock& clock,
            Sleeper& sleeper);

  // Gives the request a request_id if it has none. `cancellation` ends the waits between tries
  // (CANCELLED), not a try.
  absl::StatusOr<v1::CompressionJob> CreateJob(v1::CreateJobRequest request,
                                               Cancellation* cancellation = nullptr);
  absl::StatusOr<v1::CompressionJob> GetJob(const std::string& name);
  // One page.
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const v1::ListJobsRequest& request);
  absl::StatusOr<v1::CompressionJob> CancelJob(const std::string& name);
  absl::StatusOr<v1::CompressionJob> PauseJob(const std::string& name);
  absl::StatusOr<v1::CompressionJob> ResumeJob(const std::string& name);
  absl::Status DeleteJob(const std::string& name);
  // All pages.
  absl::StatusOr<std::vector<v1::Trial>> ListTrials(const std::string& job);
  absl::StatusOr<v1::ParetoFront> GetParetoFront(const std::string& job);
  absl::StatusOr<std::vector<v1::Artifact>> ListArtifacts(const std::string& job);
  absl::StatusOr<v1::ListCapabilitiesResponse> ListCapabilities();

  // Calls `on_event` for every event after `after_sequence`, in order and each once, however often
  // the connection breaks. Returns OK after the event of a final state, or as soon as `on_event`
  // returns false.
  // CANCELLED: `cancellation` was. DATA_LOSS: the server goes on leaving out an event. NOT_FOUND:
  // no such job. UNAVAILABLE: out of patience.
  absl::Status WatchJob(const std::string& name, int64_t after_sequence,
                        const std::function<bool(const v1::JobEvent&)>& on_event,
                        Cancellation* cancellation = nullptr);

  // Writes `artifact` (from ListArtifacts) to `path`, whose folders are made. The bytes gather in
  // `path`.<hash>.partial, which a later call takes up again if this one fails; `path` appears at
  // once, complete and synced, after its SHA-256 agreed. A file there that already agrees is kept.
  // `on_progress` is told how many bytes there are, from the calling thread. Bytes come from the
  // storage behind the server where it gives a URL of it that works, else through the server.
  // CANCELLED: `cancellation` was. DATA_LOSS: the bytes do not have the artifact's hash. ABORTED:
  // another process downloads it.
  absl::Status DownloadArtifact(const v1::Artifact& artifact, const std::string& path,
                                const std::function<void(int64_t bytes)>& on_progress = nullptr,
                                Cancellation* cancellation = nullptr);

 private:
  // One call's failures: whether to go on, and the wait before it.
  class Retry;

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::JobService::StubInterface::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request, bool repeatable,
                                Cancellation* cancellation = nullptr);

  const std::unique_ptr<v1::JobService::StubInterface> stub_;
  const Options options_;
  Clock& clock_;
  Sleeper& sleeper_;
  SignedUrlTransfer signed_urls_;
};

// The job has SUCCEEDED, FAILED or been CANCELLED.
bool IsFinal(v1::CompressionJob::State state);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_CLIENT_H_
