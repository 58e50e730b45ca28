// Two queues on one PostgreSQL store, as in two server processes, each with a clock of its own.
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/queue/job_queue.h"
#include "server/queue/job_states.h"
#include "server/store/postgres_job_store.h"
#include "server/testing/damaged_record.h"
#include "server/testing/postgres_cluster.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using internal::v1::HeartbeatResponse;

// Runs `hook` once, in the middle of a plan.
class InterruptedProposer final : public TrialProposer {
 public:
  absl::StatusOr<std::optional<TrialProposal>> Propose(
      const v1::Search& search, const search::SearchSpace& space, int64_t budget_bytes,
      absl::Span<const search::Trial> history) const override {
    if (std::function<void()> hook = std::exchange(hook_, nullptr)) hook();
    return proposer_->Propose(search, space, budget_bytes, history);
  }
  mutable std::function<void()> hook_;

 private:
  const std::unique_ptr<TrialProposer> proposer_ = MakeSearchProposer();
};

// One server: what it has in memory, on the shared database and files.
struct TestServer {
  TestServer(const std::string& url, ArtifactStore& artifacts, IdGenerator& ids)
      : store(OpenPostgresJobStore({.url = url}).value()) {
    queue =
        JobQueue::Create({}, *store, artifacts, clock, ids, proposer, watches, observer).value();
    queue->Tick();
  }
  void Register(const std::string& worker, const std::string& incarnation = "a") {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker(worker);
    request.set_incarnation(incarnation);
    ASSERT_TRUE(queue->RegisterWorker(request).ok());
  }
  AcquireTaskResponse Poll(const std::string& worker, const std::string& incarnation = "a") {
    internal::v1::AcquireTaskRequest request;
    request.set_worker(worker);
    request.set_incarnation(incarnation);
    std::optional<absl::StatusOr<AcquireTaskResponse>> result;
    queue->AcquireTask(request, [&](auto response) { result = std::move(response); });
    if (!result) queue->Tick();
    EXPECT_TRUE(result && result->ok());
    return result && result->ok() ? **result : AcquireTaskResponse();
  }
  absl::StatusOr<HeartbeatResponse> Heartbeat(const AcquireTaskResponse& held) {
    internal::v1::HeartbeatRequest request;
    *request.mutable_lease() = held.lease();
    return queue->Heartbeat(request);
  }

  SimulatedClock clock;
  WatchHub watches;
  QueueObserver observer;
  InterruptedProposer proposer;
  std::unique_ptr<JobStore> store;
  std::unique_ptr<JobQueue> queue;
};

class SharedQueueTest : public testing::Test {
 protected:
  void SetUp() override {
    if (PostgresCluster::Shared() == nullptr) GTEST_SKIP() << "PostgreSQL cannot be run here";
    url_ = PostgresCluster::Shared()->NewDatabase();
    artifacts_ = OpenLocalArtifactStore({.folder = folder_.path(), .shared = true}).value();
    a_ = MakeServer();
    b_ = MakeServer();
  }
  std::unique_ptr<TestServer> MakeServer() {
    return std::make_unique<TestServer>(url_, *artifacts_, ids_);
  }
  static JobName Create(TestServer& server, const std::string& request_id = "",
                        int parallelism = 2) {
    auto request = ScriptedRequest();
    request.set_request_id(request_id);
    request.mutable_job()->mutable_spec()->mutable_search()->set_parallelism(parallelism);
    auto job = server.queue->CreateJob(*ValidateCreateJob(request, {}));
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? JobName::Parse(job->name()).value() : JobName();
  }
  absl::Status Complete(TestServer& server, const AcquireTaskResponse& held) {
    UploadOutputs(*artifacts_, held.task());
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_result() = ScriptedResult(held.task());
    return server.queue->CompleteTask(request);
  }
  // Both servers' time passes, in the steps of their Ticks.
  void Pass(absl::Duration time) {
    for (absl::Duration passed; passed < time; passed += absl::Seconds(1)) {
      for (TestServer* server : {a_.get(), b_.get()}) {
        server->clock.Advance(absl::Seconds(1));
        server->queue->Tick();
      }
    }
  }
  v1::CompressionJob Get(const JobName& name) {
    v1::CompressionJob job;
    EXPECT_TRUE(b_->store
                    ->Read([&](StoreReader& reader) {
                      auto record = reader.GetJob(name);
                      if (record.ok()) job = record->job();
                      return record.status();
                    })
                    .ok());
    return job;
  }
  std::vector<v1::Trial> Trials(const JobName& name) {
    std::vector<v1::Trial> trials;
    EXPECT_TRUE(b_->store
                    ->Read([&](StoreReader& reader) {
                      auto list = reader.ListTrials(name, 0, 0);
                      if (list.ok()) trials = *list;
                      return list.status();
                    })
                    .ok());
    return trials;
  }
  // Works alone at `server` until the job is over.
  void Finish(TestServer& server, const JobName& name) {
    server.Register("finisher");
    while (!IsFinal(Get(name).state())) {
      const AcquireTaskResponse held = server.Poll("finisher");
      ASSERT_TRUE(held.has_lease());
      ASSERT_TRUE(Complete(server, held).ok());
      server.queue->Tick();
    }
    EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
  }
  // Assignments and measurements, in order.
  std::string Outcome(const JobName& name) {
    std::string text;
    for (v1::Trial trial : Trials(name)) {
      trial.clear_name();
      trial.clear_start_time();
      trial.clear_end_time();
      trial.clear_attempt_count();
      trial.clear_worker();
      absl::StrAppend(&text, trial.ShortDebugString(), "\n");
    }
    return text;
  }

  TempFolder folder_;
  CountingIds ids_;
  std::string url_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::unique_ptr<TestServer> a_, b_;
};

TEST_F(SharedQueueTest, ALeaseOfOneServerIsGoodAtTheOther) {
  const JobName name = Create(*a_);
  a_->Register("w1");
  const AcquireTaskResponse held = a_->Poll("w1");
  ASSERT_TRUE(held.has_lease());
  EXPECT_EQ(b_->Heartbeat(held)->desired_state(), HeartbeatResponse::CONTINUE);
  EXPECT_TRUE(b_->queue->FindLeasedTask(held.lease()).ok());
  ASSERT_TRUE(a_->queue->CancelJob(name).ok());
  EXPECT_EQ(b_->Heartbeat(held)->desired_state(), HeartbeatResponse::ABORT);
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_error() = ToRpcStatus(absl::CancelledError("as asked"));
  ASSERT_TRUE(b_->queue->CompleteTask(request).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::CANCELLED);
  EXPECT_TRUE(absl::IsAborted(a_->Heartbeat(held).status()));
}

TEST_F(SharedQueueTest, HeartbeatsAtOneServerRenewForBoth) {
  const JobName name = Create(*a_);
  a_->Register("w1");
  const AcquireTaskResponse held = a_->Poll("w1");
  for (int i = 0; i < 20; ++i) {
    Pass(absl::Seconds(3));
    ASSERT_TRUE(b_->Heartbeat(held).ok()) << "after " << 3 * i << " s";
  }
  EXPECT_EQ(Get(name).retry_count(), 0);
  // Silence ends it, once.
  Pass(absl::Seconds(25));
  EXPECT_EQ(Get(name).retry_count(), 1);
  EXPECT_TRUE(absl::IsAborted(b_->Heartbeat(held).status()));
  EXPECT_TRUE(absl::IsAborted(Complete(*a_, held)));
}

TEST_F(SharedQueueTest, WallClocksThatDisagreeExpireNothing) {
  const JobName name = Create(*a_);
  b_->clock.JumpWallClock(absl::Hours(1));
  a_->Register("w1");
  const AcquireTaskResponse held = a_->Poll("w1");
  for (int i = 0; i < 5; ++i) {
    Pass(absl::Seconds(4));
    a_->clock.JumpWallClock(absl::Hours(i % 2 == 0 ? 3 : -3));
    ASSERT_TRUE(a_->Heartbeat(held).ok());
  }
  EXPECT_EQ(Get(name).retry_count(), 0);
}

TEST_F(SharedQueueTest, WhatADeadServerLeftIsTakenUp) {
  const JobName name = Create(*a_);
  a_->Register("w1");
  ASSERT_TRUE(Complete(*a_, a_->Poll("w1")).ok());
  // Killed between the result and the plan; nobody was told.
  a_.reset();
  b_->Register("w1");
  for (int i = 0; i < 6; ++i) {
    b_->clock.Advance(absl::Seconds(1));
    b_->queue->Tick();
  }
  EXPECT_FALSE(Trials(name).empty());
  Finish(*b_, name);
}

TEST_F(SharedQueueTest, AJobThatOneServerPausesIsTakenFromTheOthersWorkers) {
  const JobName undisturbed = Create(*b_);
  Finish(*b_, undisturbed);
  const JobName name = Create(*a_);
  b_->Register("w1");
  ASSERT_TRUE(Complete(*b_, b_->Poll("w1")).ok());
  b_->queue->Tick();
  const AcquireTaskResponse held = b_->Poll("w1");
  ASSERT_TRUE(held.has_lease());
  EXPECT_EQ(a_->queue->PauseJob(name)->state(), v1::CompressionJob::PAUSING);
  EXPECT_EQ(b_->Heartbeat(held)->desired_state(), HeartbeatResponse::RETURN);
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  request.mutable_returned()->set_reason("The job is paused");
  ASSERT_TRUE(b_->queue->CompleteTask(request).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
  Pass(absl::Seconds(30));
  EXPECT_FALSE(b_->Poll("w1").has_lease());
  EXPECT_EQ(b_->queue->ResumeJob(name)->state(), v1::CompressionJob::RUNNING);
  EXPECT_EQ(a_->queue->ResumeJob(name)->state(), v1::CompressionJob::RUNNING);
  Finish(*a_, name);
  EXPECT_EQ(Get(name).retry_count(), 0);
  EXPECT_EQ(Outcome(name), Outcome(undisturbed));
}

TEST_F(SharedQueueTest, ServersShareTheWorkersBetweenProjectsTogether) {
  v1::CreateJobRequest request = ScriptedRequest();
  for (const char* project : {"one", "two"}) {
    for (int i = 0; i < 12; ++i) {
      request.set_parent(absl::StrCat("projects/", project));
      ASSERT_TRUE(a_->queue->CreateJob(*ValidateCreateJob(request, {})).ok());
    }
  }
  // A worker at each server: whoever is behind over both comes first.
  std::map<std::string, int> counts;
  a_->Register("wa");
  b_->Register("wb");
  for (int i = 0; i < 10; ++i) {
    for (TestServer* server : {a_.get(), b_.get()}) {
      const AcquireTaskResponse held = server->Poll(server == a_.get() ? "wa" : "wb");
      ASSERT_TRUE(held.has_lease());
      ++counts[JobName::Parse(held.lease().job())->project];
      Pass(absl::Seconds(3));
      ASSERT_TRUE(Complete(*server, held).ok());
      Pass(absl::Seconds(3));
    }
  }
  EXPECT_NEAR(counts["one"], 10, 1);
  EXPECT_NEAR(counts["two"], 10, 1);
}

TEST_F(SharedQueueTest, TwoPlansOfOneStepAreOne) {
  // One trial at a time: between a result and the next plan the job has no task.
  const JobName undisturbed = Create(*b_, "", 1);
  Finish(*b_, undisturbed);

  const JobName name = Create(*a_, "", 1);
  a_->Register("w1");
  b_->Register("w2");
  int plans = 0;
  while (!IsFinal(Get(name).state())) {
    const AcquireTaskResponse held = a_->Poll("w1");
    ASSERT_TRUE(held.has_lease());
    ASSERT_TRUE(Complete(*a_, held).ok());
    // In the middle of A's plan, B finds the same job without a task, plans it, and leases a task.
    AcquireTaskResponse held_at_b;
    a_->proposer.hook_ = [&] {
      ++plans;
      b_->clock.Advance(absl::Seconds(6));
      b_->queue->Tick();
      held_at_b = b_->Poll("w2");
      EXPECT_TRUE(held_at_b.has_lease());
    };
    a_->queue->Tick();
    // What A had planned has not queued it again.
    if (held_at_b.has_lease()) {
      ASSERT_TRUE(Complete(*b_, held_at_b).ok());
      // Whoever has stored a result plans what follows.
      b_->queue->Tick();
    }
  }
  EXPECT_GT(plans, 0);
  for (const v1::Trial& trial : Trials(name)) EXPECT_EQ(trial.attempt_count(), 1) << trial.name();
  EXPECT_EQ(Outcome(name), Outcome(undisturbed));
}

TEST_F(SharedQueueTest, AJobThatCannotBeReadHoldsUpNeitherServer) {
  const auto damage = [&](const JobName& name) {
    ASSERT_TRUE(a_->store
                    ->Transact([&](StoreTransaction& store) -> absl::Status {
                      ASSIGN_OR_RETURN(internal::v1::JobRecord record, store.GetJob(name));
                      MakeUnreadable(record);
                      return store.UpdateJob(record);
                    })
                    .ok());
  };
  const JobName leased = Create(*a_);
  a_->Register("w");
  b_->Register("w");
  const AcquireTaskResponse held = a_->Poll("w");
  ASSERT_EQ(held.lease().job(), leased.ToString());
  const JobName queued = Create(*a_);
  damage(leased);
  damage(queued);
  EXPECT_TRUE(absl::IsDataLoss(b_->Heartbeat(held).status()));
  const JobName other = Create(*b_);
  EXPECT_EQ(b_->Poll("w").lease().job(), other.ToString());
  // The lease has ended at both.
  Pass(absl::Seconds(40));
  const JobName later = Create(*a_);
  Finish(*a_, other);
  Finish(*a_, later);
}

TEST_F(SharedQueueTest, ANewProcessOfAWorkerMayRegisterAtTheOtherServer) {
  Create(*a_);
  a_->Register("w1", "old");
  const AcquireTaskResponse old = a_->Poll("w1", "old");
  b_->Register("w1", "new");
  EXPECT_TRUE(absl::IsAborted(a_->Heartbeat(old).status()));
  const AcquireTaskResponse now = b_->Poll("w1", "new");
  EXPECT_EQ(now.lease().task(), old.lease().task());
  EXPECT_EQ(now.lease().attempt(), 2);
}

TEST_F(SharedQueueTest, ALostReplyIsDeliveredByTheOtherServer) {
  Create(*a_);
  Create(*a_);
  a_->Register("w1");
  const AcquireTaskResponse lost = a_->Poll("w1");
  b_->Register("w1");
  const AcquireTaskResponse again = b_->Poll("w1");
  EXPECT_EQ(again.lease().token(), lost.lease().token());
  EXPECT_EQ(again.lease().attempt(), 1);
}

TEST_F(SharedQueueTest, ARequestThatBothServersGetMakesOneJob) {
  for (int round = 0; round < 10; ++round) {
    const std::string id = absl::StrCat("r", round);
    std::string at_a, at_b;
    std::thread other([&] { at_a = Create(*a_, id).ToString(); });
    at_b = Create(*b_, id).ToString();
    other.join();
    EXPECT_EQ(at_a, at_b);
  }
}

}  // namespace
}  // namespace qpruner::server
