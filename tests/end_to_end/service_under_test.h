// A real server with its real workers and engines, in a folder of its own.
#ifndef QPRUNER_TESTS_END_TO_END_SERVICE_UNDER_TEST_H_
#define QPRUNER_TESTS_END_TO_END_SERVICE_UNDER_TEST_H_

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/child_process.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "tests/testing/small_job.h"

namespace qpruner {

// Not thread-safe. Failures are reported as test failures.
class ServiceUnderTest {
 public:
  explicit ServiceUnderTest(int local_workers);
  ~ServiceUnderTest();

  // Starts the server on the same data folder as before; returns when it answers.
  void Start();
  // SIGKILL to the server alone.
  void KillServer();
  // SIGTERM; returns the server's wait status.
  int Stop();

  // Processes of this service that run now, by program name. Killed ones that nobody reaped do not
  // count.
  std::vector<pid_t> Workers() const;
  std::vector<pid_t> Engines() const;
  pid_t server_pid() const { return server_->pid(); }
  v1::JobService::Stub& jobs() { return *stub_; }
  const std::filesystem::path& folder() const { return folder_; }

  // Waits for `condition`, checking every few milliseconds, at most `timeout` (real time).
  static bool WaitUntil(absl::Duration timeout, const std::function<bool()>& condition);

 private:
  const int local_workers_;
  std::filesystem::path folder_;
  std::string address_;
  std::unique_ptr<ChildProcess> server_;
  std::unique_ptr<v1::JobService::Stub> stub_;
};

// Queues a job. A refusal is a test failure.
v1::CompressionJob Create(ServiceUnderTest& service, const v1::CompressionJob& job);

// Follows a job over server restarts and keeps every event it was sent. Checks that sequences have
// no gap and no repetition. `on_event` may kill and restart things; it runs on the calling thread.
// Returns when the job's stream has ended with a final state, or after `timeout` with a test
// failure.
std::vector<v1::JobEvent> FollowJob(ServiceUnderTest& service, const std::string& name,
                                    absl::Duration timeout,
                                    const std::function<void(const v1::JobEvent&)>& on_event = {});

// JobOutcome of tests/testing/job_outcome.h. An error of a call is a test failure.
std::string Outcome(ServiceUnderTest& service, const std::string& name);

}  // namespace qpruner

#endif  // QPRUNER_TESTS_END_TO_END_SERVICE_UNDER_TEST_H_
