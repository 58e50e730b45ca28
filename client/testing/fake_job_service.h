// JobService in memory, for one job at a time, with faults on demand.
#ifndef QPRUNER_CLIENT_TESTING_FAKE_JOB_SERVICE_H_
#define QPRUNER_CLIENT_TESTING_FAKE_JOB_SERVICE_H_

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/testing/example_job.h"
#include "grpcpp/server.h"
#include "qpruner/v1/job_service.grpc.pb.h"

namespace qpruner {

// How one WatchJob or DownloadArtifact stream goes wrong. Streams without a fault left are good.
struct StreamFault {
  // Messages that still arrive.
  int after_messages = 0;
  // WatchJob: leaves out one event, then goes on. DownloadArtifact: changes a byte of what follows.
  bool damage = false;
  // WatchJob: begins with the event before the one asked for.
  bool repeat = false;
  // How it then ends, unless damaged.
  grpc::StatusCode code = grpc::StatusCode::UNAVAILABLE;
};

// Thread-safe. Every call is counted by its method's name.
class FakeJobService final : public v1::JobService::Service {
 public:
  FakeJobService() : example_(MakeExampleJob()) {}

  // The next `count` calls of `method`, streams included, fail with `status`.
  void Fail(const std::string& method, int count, grpc::Status status);
  void AddFault(const std::string& method, StreamFault fault);
  // WatchJob ends after this many events and waits for CancelJob.
  void HoldAfter(int64_t events);
  // The last event is FAILED with this message.
  void EndInFailure(const std::string& message);
  // An artifact of the job; its hash is the content's unless `sha256` is given.
  void AddArtifact(const std::string& path, std::string content, std::string sha256 = "");
  // From now on downloads that accept one get a URL, BASE/artifact?signature=s3cr3t.
  void GiveUrls(const std::string& base);
  // All that was sent to CreateJob.
  std::vector<v1::CreateJobRequest> created();
  int calls(const std::string& method);
  int64_t bytes_sent();

  grpc::Status CreateJob(grpc::ServerContext*, const v1::CreateJobRequest*,
                         v1::CompressionJob*) override;
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest*, v1::CompressionJob*) override;
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*,
                        v1::ListJobsResponse*) override;
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest*,
                        grpc::ServerWriter<v1::JobEvent>*) override;
  grpc::Status CancelJob(grpc::ServerContext*, const v1::CancelJobRequest*,
                         v1::CompressionJob*) override;
  grpc::Status PauseJob(grpc::ServerContext*, const v1::PauseJobRequest*,
                        v1::CompressionJob*) override;
  grpc::Status ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest*,
                         v1::CompressionJob*) override;
  grpc::Status DeleteJob(grpc::ServerContext*, const v1::DeleteJobRequest*,
                         google::protobuf::Empty*) override;
  grpc::Status ListTrials(grpc::ServerContext*, const v1::ListTrialsRequest*,
                          v1::ListTrialsResponse*) override;
  grpc::Status GetParetoFront(grpc::ServerContext*, const v1::GetParetoFrontRequest*,
                              v1::ParetoFront*) override;
  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest*,
                             v1::ListArtifactsResponse*) override;
  grpc::Status DownloadArtifact(grpc::ServerContext*, const v1::DownloadArtifactRequest*,
                                grpc::ServerWriter<v1::DownloadArtifactResponse>*) override;
  grpc::Status ListCapabilities(grpc::ServerContext*, const v1::ListCapabilitiesRequest*,
                                v1::ListCapabilitiesResponse*) override;

 private:
  struct Stored {
    v1::Artifact artifact;
    std::string content;
  };
  // Counts the call; not OK if it is to fail.
  grpc::Status Enter(const std::string& method, const std::string& job);
  StreamFault NextFault(const std::string& method);

  absl::Mutex mutex_;
  ExampleJob example_ ABSL_GUARDED_BY(mutex_);
  int64_t hold_after_ ABSL_GUARDED_BY(mutex_) = -1;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::deque<grpc::Status>> failures_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::deque<StreamFault>> faults_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> calls_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Stored> artifacts_ ABSL_GUARDED_BY(mutex_);
  std::string url_base_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::CreateJobRequest> created_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_sent_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A server of `service` on a Unix socket in a new folder under the system's temporary one.
class FakeJobServer {
 public:
  FakeJobServer();
  ~FakeJobServer();
  FakeJobService& service() { return service_; }
  const std::string& address() const { return address_; }

 private:
  FakeJobService service_;
  std::string folder_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_TESTING_FAKE_JOB_SERVICE_H_
