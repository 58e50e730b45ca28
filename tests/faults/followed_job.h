// A job that is watched from its creation to its end, over whatever happens to the server.
#ifndef QPRUNER_TESTS_FAULTS_FOLLOWED_JOB_H_
#define QPRUNER_TESTS_FAULTS_FOLLOWED_JOB_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "qpruner/v1/job_service.grpc.pb.h"

namespace qpruner {

// Runs on a thread of its own. Thread-safe.
class FollowedJob {
 public:
  // Creates the job, again and again until it is answered: `request` has a request id.
  FollowedJob(v1::JobService::Stub& jobs, v1::CreateJobRequest request);
  // Gives up.
  ~FollowedJob();
  FollowedJob(const FollowedJob&) = delete;
  FollowedJob& operator=(const FollowedJob&) = delete;

  // Empty until the creation was answered.
  std::string name() const;
  // The last event of the job was received, or an error that ends everything.
  bool ended() const { return ended_; }
  // What was received, in the order in which it was.
  std::vector<v1::JobEvent> events() const;
  // The first answer that should never be given; OK.
  absl::Status error() const;

 private:
  void Run();
  // False: stopped, or an error.
  bool Create();
  void Fail(const absl::Status& error);

  v1::JobService::Stub& jobs_;
  const v1::CreateJobRequest request_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> ended_ = false;
  mutable absl::Mutex mutex_;
  std::string name_ ABSL_GUARDED_BY(mutex_);
  std::vector<v1::JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// True once the job will not change any more.
bool IsFinalState(v1::CompressionJob::State state);

// All events of a job that has ended, read at once.
absl::StatusOr<std::vector<v1::JobEvent>> ReplayEvents(v1::JobService::StubInterface& jobs,
                                                       const std::string& name);

}  // namespace qpruner

#endif  // QPRUNER_TESTS_FAULTS_FOLLOWED_JOB_H_
