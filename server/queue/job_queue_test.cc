#include "server/queue/job_queue.h"

#include <atomic>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/queue/job_states.h"
#include "server/queue/task_checkpoints.h"
#include "server/queue/task_transitions.h"
#include "server/store/faulty_sqlite_vfs.h"
#include "server/store/sqlite_job_store.h"
#include "server/testing/damaged_record.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using internal::v1::HeartbeatResponse;
using internal::v1::TaskRecord;
using testing::ElementsAre;
using testing::HasSubstr;

class JobQueueTest : public testing::Test {
 protected:
  JobQueueTest() {
    store_ = OpenSqliteJobStore({.folder = folder_.path() + "/store"}).value();
    artifacts_ =
        OpenLocalArtifactStore({.folder = folder_.path() + "/artifacts", .clock = clock_}).value();
    proposer_ = MakeSearchProposer();
    Restart();
  }

  // As after kill -9: nothing of the old queue is kept but the store.
  void Restart() {
    queue_.reset();
    queue_ =
        JobQueue::Create({}, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
            .value();
    queue_->Tick();
  }

  JobName Create(const v1::CreateJobRequest& request = ScriptedRequest()) {
    auto valid = ValidateCreateJob(request, {});
    EXPECT_TRUE(valid.ok()) << valid.status();
    auto job = queue_->CreateJob(*valid);
    EXPECT_TRUE(job.ok()) << job.status();
    return JobName::Parse(job->name()).value();
  }
  void Register(const std::string& worker = "w1", const std::string& incarnation = "a") {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker(worker);
    request.set_incarnation(incarnation);
    ASSERT_TRUE(queue_->RegisterWorker(request).ok());
  }
  // What a poll that does not wait brings.
  absl::StatusOr<AcquireTaskResponse> Poll(const std::string& worker = "w1",
                                           const std::string& incarnation = "a") {
    internal::v1::AcquireTaskRequest request;
    request.set_worker(worker);
    request.set_incarnation(incarnation);
    std::optional<absl::StatusOr<AcquireTaskResponse>> result;
    queue_->AcquireTask(request, [&](auto response) {
      EXPECT_FALSE(result) << "answered twice";
      result = std::move(response);
    });
    if (!result) queue_->Tick();
    EXPECT_TRUE(result);
    return *result;
  }
  AcquireTaskResponse Acquire(const std::string& worker = "w1",
                              const std::string& incarnation = "a") {
    auto response = Poll(worker, incarnation);
    EXPECT_TRUE(response.ok()) << response.status();
    EXPECT_TRUE(response->has_lease()) << "no task";
    return *response;
  }
  absl::Status Complete(const AcquireTaskResponse& held) {
    return Complete(held, ScriptedResult(held.task()));
  }
  absl::Status Complete(const AcquireTaskResponse& held, const internal::v1::TaskResult& result) {
    UploadOutputs(*artifacts_, held.task());
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_result() = result;
    return queue_->CompleteTask(request);
  }
  void StoreContent(const std::string& content) {
    const absl::Status stored = server::StoreContent(*artifacts_, content);
    ASSERT_TRUE(stored.ok()) << stored;
  }
  absl::Status Fail(const AcquireTaskResponse& held, const absl::Status& error) {
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_error() = ToRpcStatus(error);
    return queue_->CompleteTask(request);
  }
  absl::StatusOr<HeartbeatResponse> Heartbeat(const AcquireTaskResponse& held,
                                              double fraction = 0) {
    internal::v1::HeartbeatRequest request;
    *request.mutable_lease() = held.lease();
    request.set_fraction(fraction);
    return queue_->Heartbeat(request);
  }
  // Works through the job until `task` would be next, and returns its lease.
  AcquireTaskResponse RunUntil(const std::string& task) {
    while (true) {
      AcquireTaskResponse held = Acquire();
      if (!held.has_lease() || held.lease().task() == task) return held;
      EXPECT_TRUE(Complete(held).ok());
      queue_->Tick();
    }
  }
  v1::CompressionJob Get(const JobName& name) {
    v1::CompressionJob job;
    EXPECT_TRUE(store_
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
    EXPECT_TRUE(store_
                    ->Read([&](StoreReader& reader) {
                      auto list = reader.ListTrials(name, 0, 0);
                      if (list.ok()) trials = *list;
                      return list.status();
                    })
                    .ok());
    return trials;
  }
  std::vector<v1::JobEvent> Events(const JobName& name) {
    std::vector<v1::JobEvent> events;
    EXPECT_TRUE(store_
                    ->Read([&](StoreReader& reader) {
                      auto list = reader.ListEvents(name, 0, 100000);
                      if (list.ok()) events = *list;
                      return list.status();
                    })
                    .ok());
    return events;
  }
  // Leaves the rows as damage does: they cannot be read again.
  void DamageJob(const JobName& name) {
    ASSERT_TRUE(store_
                    ->Transact([&](StoreTransaction& store) -> absl::Status {
                      ASSIGN_OR_RETURN(internal::v1::JobRecord record, store.GetJob(name));
                      MakeUnreadable(record);
                      return store.UpdateJob(record);
                    })
                    .ok());
  }
  void DamageTrial(const JobName& name, int index) {
    ASSERT_TRUE(store_
                    ->Transact([&](StoreTransaction& store) -> absl::Status {
                      ASSIGN_OR_RETURN(auto trials, store.ListTrials(name, index - 1, 1));
                      MakeUnreadable(trials.at(0));
                      return store.PutTrial(name, trials[0]);
                    })
                    .ok());
  }
  void DamageTask(const JobName& name, const std::string& id) {
    ASSERT_TRUE(store_
                    ->Transact([&](StoreTransaction& store) -> absl::Status {
                      ASSIGN_OR_RETURN(TaskRecord task, store.GetTask(name, id));
                      MakeUnreadable(task);
                      return store.PutTask(task);
                    })
                    .ok());
  }
  absl::StatusOr<TaskRecord> GetTask(const JobName& name, const std::string& id) {
    absl::StatusOr<TaskRecord> task = absl::UnknownError("not read");
    const absl::Status read = store_->Read([&](StoreReader& reader) {
      task = reader.GetTask(name, id);
      return task.status();
    });
    EXPECT_EQ(read, task.status());
    return task;
  }
  void RunToTheEnd(const JobName& name) {
    ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
    queue_->Tick();
    EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
  }
  absl::Status GiveBack(const AcquireTaskResponse& held) {
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    request.mutable_returned()->set_reason("Worker is draining");
    return queue_->CompleteTask(request);
  }
  // Everything that a repeated run must repeat.
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
    v1::JobReport report = Get(name).report();
    for (auto& row : *report.mutable_rows()) row.clear_trial();
    report.set_chosen_trial(report.chosen_trial().substr(report.chosen_trial().find("/trials/")));
    return absl::StrCat(text, report.ShortDebugString());
  }

  TempFolder folder_;
  SimulatedClock clock_;
  CountingIds ids_;
  WatchHub watches_;
  QueueObserver observer_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::unique_ptr<TrialProposer> proposer_;
  std::unique_ptr<JobQueue> queue_;
};

v1::CreateJobRequest Limited(void (*set)(v1::Limits&)) {
  v1::CreateJobRequest request = ScriptedRequest();
  set(*request.mutable_job()->mutable_spec()->mutable_limits());
  return request;
}

TEST_F(JobQueueTest, AJobRunsFromCreationToItsReport) {
  const JobName name = Create();
  Register();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PENDING);
  std::vector<std::string> tasks;
  while (!IsFinal(Get(name).state())) {
    const AcquireTaskResponse held = Acquire();
    ASSERT_TRUE(held.has_lease());
    tasks.push_back(held.lease().task());
    ASSERT_TRUE(Complete(held).ok());
    queue_->Tick();
  }
  EXPECT_THAT(tasks, ElementsAre("prepare", "trial-1", "trial-2", "trial-3", "trial-4", "trial-5",
                                 "trial-6", "trial-7", "trial-8", "finalize"));
  const v1::CompressionJob job = Get(name);
  EXPECT_EQ(job.state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(job.progress().fraction(), 1);
  std::vector<std::string> rows;
  for (const auto& row : job.report().rows()) rows.push_back(row.label());
  // Nothing is pruned: no row says so.
  EXPECT_THAT(rows, ElementsAre("original", "uniform-4", "uniform-8", "uniform-16", "chosen",
                                "fine-tuned"));
  // 8 bits on average of 6 x 8000 weights, and 1000 bytes outside.
  EXPECT_EQ(job.report().budget_bytes(), 49000);
  EXPECT_LE(job.report().rows(4).metrics().weight_bytes(), 49000);
  std::vector<std::string> used;
  for (const v1::TaskUse& use : job.report().task_uses()) {
    used.push_back(use.task());
    EXPECT_EQ(use.peak_host_memory_bytes(), 1 << 20);
  }
  EXPECT_EQ(used, tasks);
  // Every event has its number, and the last one is the final state.
  const std::vector<v1::JobEvent> events = Events(name);
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].sequence(), static_cast<int64_t>(i) + 1);
  }
  EXPECT_EQ(events.back().state_changed().state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(job.last_event_sequence(), events.back().sequence());
}

TEST_F(JobQueueTest, APrunedModelHasARowOfTheReport) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_pruning()->set_ratio(0.2);
  const JobName name = Create(request);
  Register();
  while (!IsFinal(Get(name).state())) {
    ASSERT_TRUE(Complete(Acquire()).ok());
    queue_->Tick();
  }
  EXPECT_EQ(Get(name).report().rows(1).label(), "pruned");
}

TEST_F(JobQueueTest, ABaseThatTheTrialHasNotMeasuredHasARowOfItsOwn) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = RunUntil("finalize");
  internal::v1::TaskResult result = ScriptedResult(held.task());
  result.mutable_finalize()->mutable_base_test()->set_perplexity(5.5);
  ASSERT_TRUE(Complete(held, result).ok());
  queue_->Tick();
  const v1::JobReport report = Get(name).report();
  ASSERT_EQ(report.rows_size(), 7);
  EXPECT_EQ(report.rows(4).label(), "chosen");
  EXPECT_EQ(report.rows(5).label(), "base");
  EXPECT_EQ(report.rows(5).metrics().perplexity(), 5.5);
  EXPECT_EQ(report.rows(5).trial(), report.chosen_trial());
  EXPECT_EQ(report.rows(6).label(), "fine-tuned");
}

TEST_F(JobQueueTest, ARestartAfterEveryStepChangesNothing) {
  Register();
  const JobName undisturbed = Create();
  Complete(RunUntil("finalize")).IgnoreError();
  queue_->Tick();
  const std::string expected = Outcome(undisturbed);

  const JobName name = Create();
  std::vector<std::string> tasks;
  while (true) {
    Restart();
    Register();
    if (IsFinal(Get(name).state())) break;
    const AcquireTaskResponse held = Acquire();
    ASSERT_TRUE(held.has_lease());
    tasks.push_back(held.lease().task());
    // The worker outlives its server: the lease still counts.
    Restart();
    ASSERT_TRUE(Heartbeat(held).ok());
    // No Tick between the result and the crash: its successors are planned by the next queue.
    ASSERT_TRUE(Complete(held).ok());
  }
  EXPECT_EQ(Outcome(name), expected);
  EXPECT_EQ(std::set<std::string>(tasks.begin(), tasks.end()).size(), tasks.size())
      << "a completed task ran again";
  EXPECT_EQ(Get(name).retry_count(), 0);
}

// Counts what is asked of another store.
class CountingStore final : public JobStore {
 public:
  explicit CountingStore(JobStore& store) : store_(store) {}
  absl::Status Transact(absl::FunctionRef<absl::Status(StoreTransaction&)> body) override {
    ++calls;
    return store_.Transact(body);
  }
  absl::Status Read(absl::FunctionRef<absl::Status(StoreReader&)> body) override {
    ++calls;
    return store_.Read(body);
  }
  absl::StatusOr<std::string> Identity() override { return store_.Identity(); }

  std::atomic<int> calls = 0;

 private:
  JobStore& store_;
};

TEST_F(JobQueueTest, ARestartLooksAtTheJobsAloneThatMayNeedAPlan) {
  Register();
  const JobName running = Create();
  ASSERT_TRUE(Complete(Acquire()).ok());
  for (int i = 0; i < 50; ++i) Create();
  CountingStore store(*store_);
  queue_ = JobQueue::Create({}, store, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
               .value();
  EXPECT_LE(store.calls, 1) << "before a server can listen";
  queue_->KeepLeases();
  while (queue_->PlanNext()) {
  }
  EXPECT_LE(store.calls, 10) << "of 50 jobs that wait";
  EXPECT_FALSE(Trials(running).empty());
  queue_.reset();  // Before its store.
}

// Says which searches it was asked about, by their seeds, and waits before each if it is told to.
class WatchedProposer final : public TrialProposer {
 public:
  explicit WatchedProposer(const TrialProposer& proposer) : proposer_(proposer) {}
  absl::StatusOr<std::optional<TrialProposal>> Propose(
      const v1::Search& search, const search::SearchSpace& space, int64_t budget_bytes,
      absl::Span<const search::Trial> history) const override {
    {
      absl::MutexLock lock(&mutex);
      if (seeds.empty() || seeds.back() != search.seed()) seeds.push_back(search.seed());
      mutex.Await(absl::Condition(&may_go_on));
    }
    return proposer_.Propose(search, space, budget_bytes, history);
  }

  mutable absl::Mutex mutex;
  mutable std::vector<int64_t> seeds;
  bool may_go_on = true;

 private:
  const TrialProposer& proposer_;
};

TEST_F(JobQueueTest, PlansOfWhatChangesNowComeBeforeThoseOfTheBacklogByPriority) {
  std::vector<AcquireTaskResponse> held;
  for (int i = 1; i <= 4; ++i) {
    v1::CreateJobRequest request = ScriptedRequest();
    request.mutable_job()->set_priority(i == 2 ? 5 : 0);
    request.mutable_job()->mutable_spec()->mutable_search()->set_seed(i);
    Create(request);
    Register(absl::StrCat("w", i));
    held.push_back(Acquire(absl::StrCat("w", i)));
  }
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(Complete(held[i]).ok());
  WatchedProposer proposer(*proposer_);
  queue_ = JobQueue::Create({}, *store_, *artifacts_, clock_, ids_, proposer, watches_, observer_)
               .value();
  ASSERT_TRUE(Complete(held[3]).ok());
  while (queue_->PlanNext()) {
  }
  EXPECT_THAT(proposer.seeds, ElementsAre(4, 2, 1, 3));
}

TEST_F(JobQueueTest, NoLeaseWaitsForASearch) {
  WatchedProposer proposer(*proposer_);
  queue_ = JobQueue::Create({}, *store_, *artifacts_, clock_, ids_, proposer, watches_, observer_)
               .value();
  const JobName searching = Create();
  Create();
  Register("w1");
  Register("w2");
  const AcquireTaskResponse first = Acquire("w1");
  const AcquireTaskResponse silent = Acquire("w2");
  proposer.may_go_on = false;
  ASSERT_TRUE(Complete(first).ok());
  std::thread planner([&] { EXPECT_TRUE(queue_->PlanNext()); });
  {
    absl::MutexLock lock(&proposer.mutex);
    proposer.mutex.Await(absl::Condition(
        +[](std::vector<int64_t>* seeds) { return !seeds->empty(); }, &proposer.seeds));
  }
  // The search is at work: a lease ends all the same, and its task goes to who waits.
  clock_.Advance(queue_->options().lease_duration);
  internal::v1::AcquireTaskRequest request;
  request.set_worker("w1");
  request.set_incarnation("a");
  request.mutable_wait_time()->set_seconds(10);
  std::optional<absl::StatusOr<AcquireTaskResponse>> got;
  queue_->AcquireTask(request, [&](auto response) { got = std::move(response); });
  queue_->KeepLeases();
  ASSERT_TRUE(got.has_value() && got->ok());
  EXPECT_EQ((*got)->lease().job(), silent.lease().job());
  EXPECT_EQ((*got)->lease().attempt(), 2);
  EXPECT_TRUE(absl::IsAborted(Complete(silent)));
  EXPECT_TRUE(Trials(searching).empty());
  {
    absl::MutexLock lock(&proposer.mutex);
    proposer.may_go_on = true;
  }
  planner.join();
  EXPECT_FALSE(Trials(searching).empty());
}

TEST_F(JobQueueTest, ProposalsDoNotDependOnWhichWorkerIsFaster) {
  Register("w1");
  const JobName one = Create();
  Complete(RunUntil("finalize")).IgnoreError();
  queue_->Tick();

  auto request = ScriptedRequest();
  const JobName two = Create(request);
  Register("w2");
  ASSERT_TRUE(Complete(Acquire("w1")).ok());
  queue_->Tick();
  while (Get(two).stage() == v1::CompressionJob::SEARCH) {
    const AcquireTaskResponse first = Acquire("w1");
    auto second = Poll("w2");
    ASSERT_TRUE(second.ok());
    // The later trial is finished first.
    if (second->has_lease()) {
      ASSERT_TRUE(Complete(*second).ok());
    }
    queue_->Tick();
    ASSERT_TRUE(Complete(first).ok());
    queue_->Tick();
  }
  ASSERT_TRUE(Complete(Acquire("w1")).ok());
  queue_->Tick();
  EXPECT_EQ(Get(two).state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(Outcome(two), Outcome(one));
}

TEST_F(JobQueueTest, CreateIsIdempotentByRequestId) {
  auto request = ScriptedRequest();
  request.set_request_id("r1");
  const JobName first = Create(request);
  EXPECT_EQ(Create(request).ToString(), first.ToString());
  request.mutable_job()->set_display_name("another");
  const auto conflict = queue_->CreateJob(*ValidateCreateJob(request, {}));
  EXPECT_TRUE(absl::IsAlreadyExists(conflict.status()));
  EXPECT_EQ(ErrorReason(conflict.status()), "REQUEST_ID_REUSED");
}

TEST_F(JobQueueTest, AnExpiredLeaseIsFencedAndItsTaskQueuedAgain) {
  const JobName name = Create();
  Register("w1");
  Register("w2");
  const AcquireTaskResponse old = Acquire("w1");
  clock_.Advance(queue_->options().lease_duration - absl::Milliseconds(1));
  ASSERT_TRUE(Heartbeat(old).ok());
  clock_.Advance(queue_->options().lease_duration - absl::Milliseconds(1));
  queue_->Tick();
  EXPECT_FALSE(Poll("w2")->has_lease()) << "the heartbeat renewed it";
  clock_.Advance(absl::Milliseconds(1));
  queue_->Tick();
  // Before anybody else has it, and after.
  EXPECT_TRUE(absl::IsAborted(Complete(old)));
  const AcquireTaskResponse now = Acquire("w2");
  EXPECT_EQ(now.lease().task(), "prepare");
  EXPECT_EQ(now.lease().attempt(), 2);
  EXPECT_EQ(ErrorReason(Heartbeat(old).status()), "LEASE_SUPERSEDED");
  EXPECT_TRUE(absl::IsAborted(Complete(old)));
  EXPECT_TRUE(absl::IsAborted(Fail(old, absl::InternalError("late"))));
  EXPECT_TRUE(absl::IsAborted(queue_->FindLeasedTask(old.lease()).status()));
  EXPECT_TRUE(Complete(now).ok());
  EXPECT_EQ(Get(name).retry_count(), 1);
}

TEST_F(JobQueueTest, AWallClockThatJumpsExpiresNoLease) {
  Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  clock_.JumpWallClock(absl::Hours(5));
  queue_->Tick();
  EXPECT_TRUE(Heartbeat(held).ok());
}

TEST_F(JobQueueTest, AStorageThatCannotTellCostsNoAttempt) {
  Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  UploadOutputs(*artifacts_, held.task());
  // Something else lies where the objects were.
  const std::string objects = folder_.path() + "/artifacts/objects";
  std::filesystem::rename(objects, objects + ".away");
  ASSERT_TRUE(WriteFileDurably(objects, "").ok());
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_result() = ScriptedResult(held.task());
  EXPECT_TRUE(absl::IsUnavailable(queue_->CompleteTask(request)));
  EXPECT_TRUE(Heartbeat(held).ok());
  std::filesystem::remove(objects);
  std::filesystem::rename(objects + ".away", objects);
  EXPECT_TRUE(queue_->CompleteTask(request).ok());
}

// What the engine says right before its end comes with the result or the error.
TEST_F(JobQueueTest, TheLastLogLinesComeWithTheCompletion) {
  const JobName name = Create();
  Register();
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = Acquire().lease();
  *request.mutable_error() = ToRpcStatus(absl::InternalError("it broke"));
  request.add_logs()->set_text("this was tried last");
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  std::vector<std::string> lines;
  for (const v1::JobEvent& event : Events(name)) {
    if (event.has_log()) lines.push_back(event.log().text());
  }
  EXPECT_THAT(lines, ElementsAre("this was tried last", HasSubstr("it broke")));
}

TEST_F(JobQueueTest, CompletingTwiceIsOnce) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  ASSERT_TRUE(Complete(held).ok());
  const int64_t events = Get(name).last_event_sequence();
  EXPECT_TRUE(Complete(held).ok());
  EXPECT_EQ(Get(name).last_event_sequence(), events);
}

TEST_F(JobQueueTest, ALostReplyIsDeliveredAgain) {
  Create();
  Register();
  const AcquireTaskResponse lost = Acquire();
  const AcquireTaskResponse again = Acquire();
  EXPECT_EQ(again.lease().token(), lost.lease().token());
  EXPECT_EQ(again.lease().attempt(), 1);
}

TEST_F(JobQueueTest, ErrorsAreRetriedWithBackOffUpToTheLimit) {
  const JobName name = Create();
  Register();
  for (int attempt = 1; attempt <= 3; ++attempt) {
    const AcquireTaskResponse held = Acquire();
    ASSERT_EQ(held.lease().attempt(), attempt);
    ASSERT_TRUE(Fail(held, absl::InternalError("engine died")).ok());
    if (attempt == 3) break;
    EXPECT_FALSE(Poll()->has_lease()) << "not before the back-off";
    clock_.Advance(absl::Seconds(attempt));  // 1 s, then 2 s.
  }
  const v1::CompressionJob job = Get(name);
  EXPECT_EQ(job.state(), v1::CompressionJob::FAILED);
  EXPECT_EQ(job.retry_count(), 2);
  EXPECT_THAT(job.error().message(), HasSubstr("gave up after 3 of 3 attempts: engine died"));
  EXPECT_EQ(ErrorReason(FromRpcStatus(job.error())), "TOO_MANY_ATTEMPTS");
  EXPECT_FALSE(Poll()->has_lease());
}

TEST_F(JobQueueTest, BackOffHasJitterFromTheGivenRandomness) {
  class Ids final : public IdGenerator {
   public:
    std::string Hex(int bytes) override { return bytes == 4 ? "80000000" : counting_.Hex(bytes); }

   private:
    CountingIds counting_;
  } ids;
  queue_ = JobQueue::Create({}, *store_, *artifacts_, clock_, ids, *proposer_, watches_, observer_)
               .value();
  Create();
  Register();
  absl::Duration expected = absl::Milliseconds(1250);  // 1 s and half of the half.
  for (int failure = 1; failure <= 2; ++failure) {
    ASSERT_TRUE(Fail(Acquire(), absl::UnavailableError("connection reset")).ok());
    clock_.Advance(expected - absl::Milliseconds(1));
    EXPECT_FALSE(Poll()->has_lease());
    clock_.Advance(absl::Milliseconds(1));
    expected *= 2;
  }
  EXPECT_TRUE(Poll()->has_lease());
}

TEST(ErrorClasses, SayWhetherAnotherAttemptMayEndOtherwise) {
  using Code = absl::StatusCode;
  for (const Code code : {Code::kInvalidArgument, Code::kFailedPrecondition, Code::kNotFound,
                          Code::kOutOfRange, Code::kDataLoss}) {
    EXPECT_EQ(ClassOf(code), ErrorClass::kBadInput) << absl::StatusCodeToString(code);
  }
  EXPECT_EQ(ClassOf(Code::kResourceExhausted), ErrorClass::kDeviceMemory);
  for (const Code code :
       {Code::kUnavailable, Code::kInternal, Code::kUnknown, Code::kAborted,
        Code::kDeadlineExceeded, Code::kCancelled, Code::kUnimplemented, Code::kPermissionDenied}) {
    EXPECT_EQ(ClassOf(code), ErrorClass::kInfrastructure) << absl::StatusCodeToString(code);
  }
}

TEST_F(JobQueueTest, ATaskThatIsGivenBackUsesUpNoAttempt) {
  const JobName name = Create();
  Register();
  for (int lease = 1; lease <= 5; ++lease) {
    const AcquireTaskResponse held = Acquire();
    ASSERT_EQ(held.lease().attempt(), lease);
    ASSERT_TRUE(GiveBack(held).ok());
    if (lease > 3) clock_.Advance(absl::Minutes(1));
  }
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
  EXPECT_EQ(Get(name).retry_count(), 0);
  // Real failures still have their three attempts.
  for (int failure = 1; failure <= 3; ++failure) {
    ASSERT_TRUE(Fail(Acquire(), absl::InternalError("engine died")).ok());
    clock_.Advance(absl::Seconds(failure));
  }
  EXPECT_THAT(Get(name).error().message(), HasSubstr("gave up after 3 of 3 attempts"));
}

TEST_F(JobQueueTest, ATaskThatIsGivenBackAgainAndAgainBacksOff) {
  const JobName name = Create();
  Register();
  const auto expect_backoff = [&](absl::Duration least, absl::Duration most) {
    clock_.Advance(least - absl::Milliseconds(1));
    EXPECT_FALSE(Poll()->has_lease()) << "within " << least;
    clock_.Advance(most - least);
  };
  const auto give_back_at_once = [&] {
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(GiveBack(Acquire()).ok());
  };
  give_back_at_once();
  ASSERT_TRUE(GiveBack(Acquire()).ok());
  expect_backoff(absl::Seconds(1), absl::Seconds(2));
  ASSERT_TRUE(GiveBack(Acquire()).ok());
  expect_backoff(absl::Seconds(2), absl::Seconds(4));
  // A checkpoint is headway.
  AcquireTaskResponse held = Acquire();
  internal::v1::SaveCheckpointRequest checkpoint;
  *checkpoint.mutable_lease() = held.lease();
  *checkpoint.add_ref() = ArtifactOf("checkpoint/state", "state");
  StoreContent("state");
  ASSERT_TRUE(queue_->SaveCheckpoint(checkpoint).ok());
  ASSERT_TRUE(GiveBack(held).ok());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(GiveBack(Acquire()).ok());
  // And an error has a back-off of its own.
  ASSERT_TRUE(Fail(Acquire(), absl::InternalError("engine died")).ok());
  clock_.Advance(absl::Seconds(2));
  give_back_at_once();
  // A worker that gives back for a pause does as it was told.
  for (int i = 0; i < 3; ++i) {
    held = Acquire();
    ASSERT_TRUE(queue_->PauseJob(name).ok());
    ASSERT_TRUE(GiveBack(held).ok());
    ASSERT_TRUE(queue_->ResumeJob(name).ok());
  }
  EXPECT_TRUE(Acquire().has_lease());
}

TEST_F(JobQueueTest, AJobThatCannotBeReadHoldsUpNoOther) {
  const JobName damaged = Create();
  const JobName other = Create();
  DamageJob(damaged);
  Register();
  RunToTheEnd(other);
  EXPECT_TRUE(absl::IsDataLoss(queue_->CancelJob(damaged).status()));
  // Nor after its task comes up again, nor in the next process.
  for (int round = 0; round < 2; ++round) {
    clock_.Advance(absl::Hours(1));
    const JobName later = Create();
    RunToTheEnd(later);
    Restart();
    Register();
  }
}

TEST_F(JobQueueTest, AJobThatCannotBeReadAnyMoreFreesItsWorker) {
  const JobName damaged = Create();
  const JobName other = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  ASSERT_EQ(held.lease().job(), damaged.ToString());
  DamageJob(damaged);
  EXPECT_TRUE(absl::IsDataLoss(Heartbeat(held).status()));
  EXPECT_EQ(GetTask(damaged, "prepare")->state(), TaskRecord::QUEUED);
  EXPECT_TRUE(absl::IsAborted(Heartbeat(held).status()));
  RunToTheEnd(other);
}

TEST_F(JobQueueTest, ALeaseOfAJobThatCannotBeReadEndsOnce) {
  const JobName damaged = Create();
  Register();
  ASSERT_EQ(Acquire().lease().job(), damaged.ToString());
  DamageJob(damaged);
  Restart();
  clock_.Advance(queue_->options().lease_duration);
  queue_->Tick();
  const absl::StatusOr<TaskRecord> task = GetTask(damaged, "prepare");
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->state(), TaskRecord::QUEUED);
  EXPECT_GT(FromTimestamp(task->not_before()), clock_.Now());
  const JobName other = Create();
  Register();
  RunToTheEnd(other);
}

TEST_F(JobQueueTest, ATrialThatCannotBeReadHoldsUpNoOther) {
  const JobName damaged = Create();
  Register();
  const AcquireTaskResponse held = RunUntil("trial-1");
  ASSERT_EQ(GetTask(damaged, "trial-2")->state(), TaskRecord::QUEUED);
  DamageTrial(damaged, 2);
  const JobName other = Create();
  // All trials are read with each result.
  EXPECT_TRUE(absl::IsDataLoss(Complete(held)));
  RunToTheEnd(other);
  EXPECT_EQ(Get(damaged).state(), v1::CompressionJob::RUNNING);
}

TEST_F(JobQueueTest, ATaskThatCannotBeReadAnyMoreFreesItsWorker) {
  const JobName damaged = Create();
  const JobName other = Create();
  Register();
  ASSERT_EQ(Acquire().lease().job(), damaged.ToString());
  DamageTask(damaged, "prepare");
  RunToTheEnd(other);
}

TEST_F(JobQueueTest, JobsThatCannotBeReadHideNoLimit) {
  const auto request = Limited([](auto& limits) { limits.set_max_queue_seconds(60); });
  // More than are looked at together.
  for (int i = 0; i < 101; ++i) DamageJob(Create(request));
  clock_.Advance(absl::Seconds(1));
  const JobName other = Create(request);
  clock_.Advance(absl::Seconds(60));
  queue_->Tick();
  queue_->Tick();
  EXPECT_EQ(Get(other).state(), v1::CompressionJob::FAILED);
}

TEST_F(JobQueueTest, TheLogOfAnAttemptIsBounded) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  const auto heartbeat = [&](int lines) {
    internal::v1::HeartbeatRequest request;
    *request.mutable_lease() = held.lease();
    for (int i = 0; i < lines; ++i) request.add_logs()->set_text(std::string(10'000, 'x'));
    ASSERT_TRUE(queue_->Heartbeat(request).ok());
  };
  const auto lines = [&] {
    std::vector<std::string> texts;
    for (const v1::JobEvent& event : Events(name)) {
      if (event.has_log()) texts.push_back(event.log().text());
    }
    return texts;
  };
  heartbeat(90);
  EXPECT_EQ(lines().size(), 90u);
  EXPECT_EQ(lines().back().size(), 1024u);
  heartbeat(30);
  EXPECT_EQ(lines().size(), 100u);
  // What is left out makes no event of any kind.
  const int64_t events = Get(name).last_event_sequence();
  for (int i = 0; i < 10; ++i) heartbeat(7);
  EXPECT_EQ(Get(name).last_event_sequence(), events);
  clock_.Advance(absl::Minutes(1));
  heartbeat(1);
  ASSERT_EQ(lines().size(), 102u);
  EXPECT_THAT(lines()[100], HasSubstr("90 lines of the log left out"));

  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_error() = ToRpcStatus(absl::InternalError("engine died"));
  for (int i = 0; i < 105; ++i) request.add_logs()->set_text("last");
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  ASSERT_EQ(lines().size(), 102u + 99 + 2);
  EXPECT_THAT(lines()[201], HasSubstr("6 lines of the log left out"));
  EXPECT_THAT(lines()[202], HasSubstr("engine died"));
}

TEST_F(JobQueueTest, AWorkersWordsAboutItselfAreBounded) {
  internal::v1::RegisterWorkerRequest request;
  request.set_worker("w1");
  request.set_incarnation("a");
  request.set_device(std::string(65, 'x'));
  request.set_version(std::string(1 << 20, 'x'));
  const absl::Status status = queue_->RegisterWorker(request);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  const std::vector<FieldViolation> violations = FieldViolations(status);
  ASSERT_EQ(violations.size(), 2u) << status;
  EXPECT_EQ(violations[0].field, "device");
  EXPECT_EQ(violations[0].description, "must be at most 64 bytes, is 65");
  EXPECT_EQ(violations[1].field, "version");
  EXPECT_TRUE(queue_->LiveWorkers().empty());

  Register();
  internal::v1::AcquireTaskRequest acquire;
  acquire.set_worker("w1");
  acquire.set_incarnation("a");
  acquire.set_prepared_job("projects/default/jobs/" + std::string(1 << 20, 'x'));
  absl::Status refused;
  queue_->AcquireTask(acquire, [&](auto response) { refused = response.status(); });
  ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
  EXPECT_EQ(FieldViolations(refused)[0].field, "prepared_job");
  // A name that nobody has comes back in a message that fits into a reply's headers.
  acquire.set_worker(std::string(1 << 20, 'x'));
  queue_->AcquireTask(acquire, [&](auto response) { refused = response.status(); });
  EXPECT_EQ(ErrorReason(refused), "WORKER_NOT_REGISTERED");
  EXPECT_LT(refused.message().size(), 200u);
}

TEST_F(JobQueueTest, WorkersAreBoundedAndTheOldestSilentOneGoesFirst) {
  JobQueueOptions options;
  // What ListCapabilities says of the most workers reaches clients, which take 4 MiB.
  v1::ListCapabilitiesResponse all;
  v1::ListCapabilitiesResponse::Worker& longest = *all.add_workers();
  longest.set_name(std::string(63, 'x'));
  longest.set_device(std::string(64, 'x'));
  longest.set_device_memory_bytes(-1);
  longest.set_running_task_count(-1);
  EXPECT_LT(all.ByteSizeLong() * options.max_workers, size_t{4} << 20);

  options.max_workers = 3;
  queue_ =
      JobQueue::Create(options, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  const auto names = [&] {
    std::vector<std::string> names;
    for (const auto& worker : queue_->LiveWorkers()) names.push_back(worker.name());
    return names;
  };
  internal::v1::RegisterWorkerRequest request;
  request.set_incarnation("a");
  for (const char* worker : {"w1", "w2", "w3"}) {
    Register(worker);
    clock_.Advance(absl::Seconds(1));
  }
  request.set_worker("w4");
  const absl::Status refused = queue_->RegisterWorker(request);
  EXPECT_EQ(ErrorReason(refused), "TOO_MANY_WORKERS") << refused;
  EXPECT_TRUE(absl::IsResourceExhausted(refused) && RetryDelay(refused)) << refused;
  EXPECT_THAT(names(), ElementsAre("w1", "w2", "w3"));
  Register("w2", "b");  // Known: a process of it may come at any time.

  // One that waits for a task is not silent, however long ago its poll began.
  internal::v1::AcquireTaskRequest acquire;
  acquire.set_worker("w1");
  acquire.set_incarnation("a");
  acquire.mutable_wait_time()->set_seconds(60);
  queue_->AcquireTask(acquire, [](auto) {});
  clock_.Advance(options.lease_duration);
  EXPECT_TRUE(queue_->RegisterWorker(request).ok());  // In place of w3, the oldest.
  EXPECT_THAT(names(), ElementsAre("w1", "w2", "w4"));
}

TEST_F(JobQueueTest, WhatAWorkerSaysOfItsWorkIsBounded) {
  const JobName name = Create();
  Register();
  AcquireTaskResponse held = Acquire();
  internal::v1::HeartbeatRequest heartbeat;
  *heartbeat.mutable_lease() = held.lease();
  heartbeat.set_message(std::string(1 << 20, 'x'));
  ASSERT_TRUE(queue_->Heartbeat(heartbeat).ok());
  EXPECT_EQ(Get(name).progress().message().size(), 4096u);
  // The same again is no news, though only its beginning was kept.
  const int64_t events = Get(name).last_event_sequence();
  clock_.Advance(queue_->options().progress_interval);
  ASSERT_TRUE(queue_->Heartbeat(heartbeat).ok());
  EXPECT_EQ(Get(name).last_event_sequence(), events);

  google::rpc::Status error;
  error.set_code(13);
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(4000, 'X'));
  for (int i = 0; i < 100; ++i) error.add_details()->PackFrom(info);
  internal::v1::CompleteTaskRequest failure;
  *failure.mutable_lease() = held.lease();
  *failure.mutable_error() = error;
  ASSERT_TRUE(queue_->CompleteTask(failure).ok());
  absl::StatusOr<TaskRecord> task = absl::NotFoundError("");
  ASSERT_TRUE(store_
                  ->Read([&](StoreReader& reader) {
                    task = reader.GetTask(name, "prepare");
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_LT(task->error().ByteSizeLong(), 16'384u);

  clock_.Advance(absl::Seconds(2));
  held = Acquire();
  internal::v1::TaskResult result = ScriptedResult(held.task());
  for (int i = 0; i < 1000; ++i) result.mutable_prepare()->add_notes(std::string(10'000, 'x'));
  ASSERT_TRUE(Complete(held, result).ok());
  queue_->Tick();
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  const v1::CompressionJob job = Get(name);
  ASSERT_EQ(job.state(), v1::CompressionJob::SUCCEEDED);
  ASSERT_GE(job.report().notes_size(), 33);
  EXPECT_EQ(job.report().notes(31).size(), 512u);
  EXPECT_THAT(job.report().notes(32), HasSubstr("notes of the worker left out"));
  EXPECT_LT(job.ByteSizeLong(), 50'000u);
}

TEST_F(JobQueueTest, ACheckpointIsAnInputOfTheNextAttemptAndGoesWithTheTask) {
  const JobName name = Create();
  Register();
  AcquireTaskResponse held = RunUntil("finalize");
  const int inputs = held.task().inputs_size();
  internal::v1::SaveCheckpointRequest request;
  const auto save = [&](const std::string& content, bool upload = true) {
    request.clear_ref();
    *request.add_ref() = ArtifactOf("checkpoint/" + content, content);
    if (upload) StoreContent(content);
    return queue_->SaveCheckpoint(request);
  };
  *request.mutable_lease() = held.lease();
  EXPECT_TRUE(absl::IsFailedPrecondition(save("missing", /*upload=*/false)));
  ASSERT_TRUE(save("first").ok());
  ASSERT_TRUE(save("second").ok());
  // The first is not needed any more.
  EXPECT_FALSE(*artifacts_->Contains(ArtifactOf("", "first").sha256()));
  ASSERT_TRUE(Fail(held, absl::UnavailableError("gone")).ok());
  EXPECT_TRUE(absl::IsAborted(save("late")));

  Restart();
  Register();
  clock_.Advance(absl::Minutes(5));
  held = Acquire();
  ASSERT_EQ(held.task().inputs_size(), inputs + 1);
  EXPECT_EQ(held.task().inputs(inputs).path(), "checkpoint/second");
  EXPECT_TRUE(queue_->FindLeasedTask(held.lease()).ok());
  ASSERT_TRUE(Complete(held).ok());
  EXPECT_FALSE(*artifacts_->Contains(ArtifactOf("", "second").sha256()));
  // Watchers were never told.
  for (const v1::JobEvent& event : Events(name)) {
    EXPECT_THAT(event.artifact_added().name(), testing::Not(HasSubstr("checkpoint")));
  }
}

// PREPARE's: what it has made so far, and how far it is.
TEST_F(JobQueueTest, ACheckpointIsASetOfFilesThatIsReplacedAsAWhole) {
  const JobName name = Create();
  Register();
  AcquireTaskResponse held = Acquire();
  ASSERT_EQ(held.lease().task(), "prepare");
  const auto save = [&](const std::vector<std::pair<std::string, std::string>>& files) {
    internal::v1::SaveCheckpointRequest request;
    *request.mutable_lease() = held.lease();
    for (const auto& [path, content] : files) *request.add_ref() = ArtifactOf(path, content);
    return queue_->SaveCheckpoint(request);
  };
  const auto listed = [&] {
    std::set<std::string> paths;
    EXPECT_TRUE(store_
                    ->Read([&](StoreReader& reader) -> absl::Status {
                      paths.clear();
                      ASSIGN_OR_RETURN(const auto artifacts, reader.ListArtifacts(name));
                      for (const v1::Artifact& artifact : artifacts) {
                        paths.insert(ArtifactName::Parse(artifact.name()).value().path);
                      }
                      return absl::OkStatus();
                    })
                    .ok());
    return paths;
  };
  const auto stored = [&](const std::string& content) {
    return *artifacts_->Contains(ArtifactOf("", content).sha256());
  };
  const std::string block =
      ContentOf("prepared/model.safetensors");  // An output of the scripted task.
  for (const std::string& content : {std::string("pruned"), std::string("measured"), block}) {
    StoreContent(content);
  }
  ASSERT_TRUE(save({{"checkpoint/pruned", "pruned"}, {"checkpoint/outputs/x", block}}).ok());
  // One file is missing: nothing changes.
  EXPECT_TRUE(absl::IsFailedPrecondition(
      save({{"checkpoint/measured", "measured"}, {"checkpoint/missing", "missing"}})));
  EXPECT_THAT(listed(), ElementsAre("checkpoint/outputs/x", "checkpoint/pruned"));
  ASSERT_TRUE(save({{"checkpoint/outputs/x", block}, {"checkpoint/measured", "measured"}}).ok());
  EXPECT_THAT(listed(), ElementsAre("checkpoint/measured", "checkpoint/outputs/x"));
  EXPECT_FALSE(stored("pruned")) << "it has left the set";
  EXPECT_TRUE(stored(block));
  // What stays in the set is not asked for again.
  ASSERT_TRUE(artifacts_->Remove(ArtifactOf("", block).sha256()).ok());
  ASSERT_TRUE(save({{"checkpoint/outputs/x", block}, {"checkpoint/measured", "measured"}}).ok());
  StoreContent(block);

  for (const auto& bad : std::vector<std::vector<std::pair<std::string, std::string>>>{
           {},
           {{"model/x", "measured"}},
           {{"checkpoint/../x", "measured"}},
           {{"checkpoint/x", "measured"}, {"checkpoint/x", block}},
           {kMaxCheckpointFiles + 1, {"checkpoint/x", "measured"}}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(save(bad)));
  }
  ASSERT_TRUE(Fail(held, absl::UnavailableError("gone")).ok());
  EXPECT_TRUE(absl::IsAborted(save({{"checkpoint/measured", "measured"}})));

  Restart();
  Register();
  clock_.Advance(absl::Minutes(5));
  held = Acquire();
  ASSERT_EQ(held.task().inputs_size(), 2);
  EXPECT_EQ(held.task().inputs(0).path(), "checkpoint/outputs/x");
  EXPECT_EQ(held.task().inputs(1).path(), "checkpoint/measured");
  // What an attempt has uploaded since this one began may be its output: that is left to the
  // collection.
  StoreContent("other");
  ASSERT_TRUE(save({{"checkpoint/outputs/y", "other"}, {"checkpoint/measured", "measured"}}).ok());
  EXPECT_FALSE(stored(block));
  StoreContent(block);
  ASSERT_TRUE(save({{"checkpoint/outputs/x", block}, {"checkpoint/measured", "measured"}}).ok());
  EXPECT_TRUE(stored("other"));
  ASSERT_TRUE(Complete(held).ok());
  EXPECT_THAT(listed(), testing::Not(testing::Contains(HasSubstr("checkpoint"))));
  EXPECT_FALSE(stored("measured"));
  EXPECT_TRUE(stored(block)) << "the result lists it";
}

// Saving what is saved already is no headway: a worker that does no more than that is held up.
TEST_F(JobQueueTest, AnUnchangedCheckpointDoesNotEndTheBackOffOfReturns) {
  const JobName name = Create();
  Register();
  StoreContent("state");
  for (int i = 0; i < 4; ++i) {
    const AcquireTaskResponse held = Acquire();
    internal::v1::SaveCheckpointRequest save;
    *save.mutable_lease() = held.lease();
    *save.add_ref() = ArtifactOf("checkpoint/state", "state");
    ASSERT_TRUE(queue_->SaveCheckpoint(save).ok());
    internal::v1::CompleteTaskRequest returned;
    *returned.mutable_lease() = held.lease();
    returned.mutable_returned()->set_reason("Worker is draining");
    ASSERT_TRUE(queue_->CompleteTask(returned).ok());
  }
  EXPECT_FALSE(Poll()->has_lease());
}

TEST_F(JobQueueTest, SizesAreThoseOfTheStoredFilesWhateverAWorkerClaims) {
  const JobName name = Create();
  Register();
  AcquireTaskResponse held = Acquire();
  internal::v1::SaveCheckpointRequest checkpoint;
  *checkpoint.mutable_lease() = held.lease();
  *checkpoint.add_ref() = ArtifactOf("checkpoint/state", "state");
  StoreContent("state");
  checkpoint.mutable_ref(0)->set_size_bytes(std::numeric_limits<int64_t>::max());
  const absl::Status refused = queue_->SaveCheckpoint(checkpoint);
  ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
  EXPECT_EQ(FieldViolations(refused)[0].field, "ref.size_bytes");

  internal::v1::TaskResult result = ScriptedResult(held.task());
  for (auto& output : *result.mutable_outputs()) {
    output.set_size_bytes(std::numeric_limits<int64_t>::max());
  }
  ASSERT_GT(result.outputs_size(), 1);
  ASSERT_TRUE(Complete(held, result).ok());
  EXPECT_EQ(Get(name).retry_count(), 1) << "an error of the attempt";
  internal::v1::JobRecord record;
  EXPECT_TRUE(store_
                  ->Read([&](StoreReader& reader) -> absl::Status {
                    ASSIGN_OR_RETURN(record, reader.GetJob(name));
                    return absl::OkStatus();
                  })
                  .ok());
  EXPECT_EQ(record.artifact_bytes(), 0);
  // The project goes on.
  clock_.Advance(absl::Seconds(2));
  Create();
  EXPECT_TRUE(Complete(Acquire()).ok());

  AddArtifactBytes(std::numeric_limits<int64_t>::max(), record);
  AddArtifactBytes(1, record);
  EXPECT_EQ(record.artifact_bytes(), std::numeric_limits<int64_t>::max());
}

// Every text that workers send is cut somewhere; the cut must not fall into a character, or what is
// stored can never be read again.
TEST_F(JobQueueTest, TextsAreCutBetweenCharacters) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  std::string text = "a";
  while (text.size() < 5000) text += "\u00e9";
  internal::v1::HeartbeatRequest heartbeat;
  *heartbeat.mutable_lease() = held.lease();
  heartbeat.set_fraction(0.5);
  heartbeat.set_message(text);
  heartbeat.add_logs()->set_text(text);
  ASSERT_TRUE(queue_->Heartbeat(heartbeat).ok());
  EXPECT_EQ(Get(name).progress().message(), text.substr(0, 4095));
  EXPECT_EQ(Events(name).back().progress().message(), text.substr(0, 4095));

  UploadOutputs(*artifacts_, held.task());
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_result() = ScriptedResult(held.task());
  request.mutable_result()->mutable_prepare()->set_resolved_model_uri(text);
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Acquire().lease().attempt(), 2);
}

TEST_F(JobQueueTest, AnErrorIsStoredWithinBounds) {
  const JobName name = Create();
  Register();
  absl::Status error = WithErrorInfo(absl::InternalError(std::string(1 << 20, 'x')), "ENGINE_DIED");
  error.SetPayload("type.googleapis.com/anything", absl::Cord(std::string(1 << 20, 'y')));
  ASSERT_TRUE(Fail(Acquire(), error).ok());
  EXPECT_LT(Events(name).back().ByteSizeLong(), 6000u);
  clock_.Advance(absl::Minutes(1));
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = Acquire().lease();
  request.mutable_returned()->set_reason(std::string(1 << 20, 'z'));
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  EXPECT_LT(Events(name).back().ByteSizeLong(), 6000u);
  while (!IsFinal(Get(name).state())) {
    clock_.Advance(absl::Hours(1));
    ASSERT_TRUE(Fail(Acquire(), error).ok());
  }
  EXPECT_LT(Get(name).ByteSizeLong(), 10000u);
  EXPECT_EQ(ErrorReason(FromRpcStatus(Get(name).error())), "ENGINE_DIED");
}

// The removal of a file may wait for a slow storage, and holds this lock meanwhile.
TEST_F(JobQueueTest, OnlyWhoAddsFilesWaitsForARemoval) {
  Create();
  Register();
  const AcquireTaskResponse trial = RunUntil("trial-1");
  absl::MutexLock removing(&queue_->references().adding());
  EXPECT_TRUE(Fail(trial, absl::UnavailableError("the worker is drained")).ok());
  clock_.Advance(absl::Minutes(1));
  EXPECT_TRUE(Complete(Acquire()).ok());
}

TEST_F(JobQueueTest, BadInputIsNeverTriedAgain) {
  const JobName name = Create();
  Register();
  ASSERT_TRUE(Fail(Acquire(), absl::NotFoundError("no folder /x")).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_EQ(Get(name).retry_count(), 0);
  EXPECT_THAT(Get(name).error().message(), HasSubstr("no folder /x"));
}

TEST_F(JobQueueTest, ATrialWithoutMemoryIsInfeasibleAndTheJobGoesOn) {
  const JobName name = Create();
  Register();
  ASSERT_TRUE(Fail(RunUntil("trial-3"), absl::ResourceExhaustedError("out of memory")).ok());
  queue_->Tick();
  EXPECT_EQ(Trials(name)[2].state(), v1::Trial::INFEASIBLE);
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
}

TEST_F(JobQueueTest, FinalizeWithoutMemoryIsTriedAgainInSmallerBatches) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_fine_tune()->set_micro_batch_size(6);
  const JobName name = Create(request);
  Register();
  AcquireTaskResponse held = RunUntil("finalize");
  for (const int smaller : {3, 1}) {
    ASSERT_TRUE(Fail(held, absl::ResourceExhaustedError("out of memory")).ok());
    held = Acquire();  // At once.
    EXPECT_EQ(held.task().spec().fine_tune().micro_batch_size(), smaller);
  }
  // Nothing smaller is left: three attempts, with back-off.
  ASSERT_TRUE(Fail(held, absl::ResourceExhaustedError("out of memory")).ok());
  EXPECT_FALSE(Poll()->has_lease());
  clock_.Advance(absl::Seconds(1));
  held = Acquire();
  EXPECT_EQ(held.task().spec().fine_tune().micro_batch_size(), 1);
  ASSERT_TRUE(Complete(held).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(Get(name).retry_count(), 3);
  EXPECT_EQ(Get(name).spec().fine_tune().micro_batch_size(), 6);
  EXPECT_THAT(Get(name).report().notes(),
              testing::Contains(HasSubstr("micro_batch_size 1 instead of 6")));
}

TEST_F(JobQueueTest, PrepareWithoutMemoryIsTriedAgainWithLess) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  const JobName name = Create();
  internal::v1::RegisterWorkerRequest worker;
  worker.set_worker("w1");
  worker.set_incarnation("a");
  worker.set_device_memory_bytes(1024 * kMiB);
  ASSERT_TRUE(queue_->RegisterWorker(worker).ok());
  AcquireTaskResponse held = Acquire();
  EXPECT_FALSE(held.task().spec().limits().has_device_memory_bytes());
  for (const int64_t mebibytes : {256, 128, 64}) {
    ASSERT_TRUE(Fail(held, absl::ResourceExhaustedError("out of memory")).ok());
    held = Acquire();  // At once.
    EXPECT_EQ(held.task().spec().limits().device_memory_bytes(), mebibytes * kMiB);
  }
  EXPECT_THAT(Events(name).back().log().text(), HasSubstr("limits.device_memory_bytes 67108864"));
  // Less may not be asked for: three attempts, with back-off.
  for (int failure = 1; failure <= 3; ++failure) {
    ASSERT_TRUE(Fail(held, absl::ResourceExhaustedError("out of memory")).ok());
    EXPECT_FALSE(Poll()->has_lease());
    clock_.Advance(absl::Minutes(1));
    if (failure < 3) held = Acquire();
  }
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_FALSE(Get(name).spec().limits().has_device_memory_bytes());
}

TEST_F(JobQueueTest, AFailedJobTakesItsOtherLeasesWithIt) {
  const JobName name = Create();
  Register("w1");
  Register("w2");
  ASSERT_TRUE(Complete(Acquire("w1")).ok());
  queue_->Tick();
  const AcquireTaskResponse first = Acquire("w1");
  const AcquireTaskResponse second = Acquire("w2");
  ASSERT_TRUE(Fail(first, absl::DataLossError("bad weights")).ok());
  EXPECT_TRUE(absl::IsAborted(Heartbeat(second).status()));
  EXPECT_TRUE(absl::IsAborted(Complete(second)));
  EXPECT_EQ(Trials(name)[1].state(), v1::Trial::CANCELLED);
}

TEST_F(JobQueueTest, ABudgetThatNothingMeetsFailsRightAfterPrepare) {
  auto request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_search()->set_max_bytes(24999);
  const JobName name = Create(request);
  Register();
  ASSERT_TRUE(Complete(Acquire()).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_EQ(ErrorReason(FromRpcStatus(Get(name).error())), "BUDGET_TOO_SMALL");
  EXPECT_THAT(Get(name).error().message(), HasSubstr("25000"));  // 1000 + 6 x 8000 / 2.
  EXPECT_TRUE(Trials(name).empty());
}

TEST_F(JobQueueTest, AResultThatCannotBeCountsAsAFailedAttempt) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  *request.mutable_result() = ScriptedResult(held.task());  // Nothing was uploaded.
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  EXPECT_EQ(Get(name).retry_count(), 1);
  clock_.Advance(absl::Seconds(1));
  const AcquireTaskResponse again = Acquire();
  UploadOutputs(*artifacts_, again.task());
  *request.mutable_lease() = again.lease();
  request.mutable_result()->mutable_prepare()->mutable_groups(0)->mutable_choices()->RemoveLast();
  ASSERT_TRUE(queue_->CompleteTask(request).ok());
  EXPECT_EQ(Get(name).retry_count(), 2);
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
}

TEST_F(JobQueueTest, CancellingAPendingJobIsImmediate) {
  const JobName name = Create();
  EXPECT_EQ(queue_->CancelJob(name)->state(), v1::CompressionJob::CANCELLED);
  EXPECT_EQ(queue_->CancelJob(name)->state(), v1::CompressionJob::CANCELLED);
  Register();
  EXPECT_FALSE(Poll()->has_lease());
}

TEST_F(JobQueueTest, CancellingARunningJobWaitsForItsLeases) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = RunUntil("trial-2");
  EXPECT_EQ(queue_->CancelJob(name)->state(), v1::CompressionJob::CANCELLING);
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::ABORT);
  Restart();
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::ABORT);
  ASSERT_TRUE(Fail(held, absl::CancelledError("as asked")).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::CANCELLED);
  for (const v1::Trial& trial : Trials(name)) EXPECT_TRUE(IsFinal(trial.state()));
  EXPECT_FALSE(Poll().ok() && Poll()->has_lease());
}

TEST_F(JobQueueTest, ACancelledJobWhoseWorkerIsSilentEndsWithTheLease) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  ASSERT_TRUE(queue_->CancelJob(name).ok());
  // Heartbeats that do not obey renew nothing.
  clock_.Advance(queue_->options().lease_duration / 2);
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::ABORT);
  clock_.Advance(queue_->options().lease_duration / 2);
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::CANCELLED);
  EXPECT_TRUE(absl::IsAborted(Complete(held)));
}

TEST_F(JobQueueTest, CancellingAFinishedJobIsRefused) {
  const JobName name = Create();
  Register();
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  const absl::Status status = queue_->CancelJob(name).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(ErrorReason(status), "JOB_NOT_CANCELLABLE");
  EXPECT_EQ(ErrorReason(queue_->CancelJob({"default", "none"}).status()), "JOB_NOT_FOUND");
}

TEST_F(JobQueueTest, APausedPendingJobIsNotStartedUntilItIsResumed) {
  const JobName name = Create();
  EXPECT_EQ(queue_->PauseJob(name)->state(), v1::CompressionJob::PAUSED);
  EXPECT_EQ(queue_->PauseJob(name)->state(), v1::CompressionJob::PAUSED);
  const int64_t events = Get(name).last_event_sequence();
  Restart();
  Register();
  EXPECT_FALSE(Poll()->has_lease());
  EXPECT_TRUE(absl::IsFailedPrecondition(queue_->DeleteJob(name)));
  EXPECT_EQ(queue_->ResumeJob(name)->state(), v1::CompressionJob::PENDING);
  EXPECT_EQ(queue_->ResumeJob(name)->state(), v1::CompressionJob::PENDING);
  EXPECT_EQ(Get(name).last_event_sequence(), events + 1) << "the second call changed nothing";
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
}

internal::v1::CompleteTaskRequest Returned(const AcquireTaskResponse& held) {
  internal::v1::CompleteTaskRequest request;
  *request.mutable_lease() = held.lease();
  request.mutable_returned()->set_reason("The job is paused");
  return request;
}

TEST_F(JobQueueTest, APauseTakesTasksFromTheirWorkersAndChangesNothingElse) {
  const JobName undisturbed = Create();
  Register();
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();

  const JobName name = Create();
  for (const char* task : {"prepare", "trial-1", "trial-4", "finalize"}) {
    const AcquireTaskResponse held = RunUntil(task);
    ASSERT_EQ(held.lease().task(), task);
    EXPECT_EQ(queue_->PauseJob(name)->state(), v1::CompressionJob::PAUSING);
    EXPECT_EQ(queue_->PauseJob(name)->state(), v1::CompressionJob::PAUSING);
    EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::RETURN);
    if (std::string(task) == "finalize") {
      // As the engine left it.
      StoreContent("weights");
      internal::v1::SaveCheckpointRequest save;
      *save.mutable_lease() = held.lease();
      *save.add_ref() = ArtifactOf("checkpoint/step", "weights");
      ASSERT_TRUE(queue_->SaveCheckpoint(save).ok());
    }
    ASSERT_TRUE(queue_->CompleteTask(Returned(held)).ok());
    ASSERT_TRUE(queue_->CompleteTask(Returned(held)).ok()) << "a repeated call";
    EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
    queue_->Tick();
    EXPECT_FALSE(Poll()->has_lease());
    clock_.Advance(absl::Hours(1));
    Restart();
    Register();
    EXPECT_FALSE(Poll()->has_lease());
    EXPECT_EQ(queue_->ResumeJob(name)->state(), v1::CompressionJob::RUNNING);
    const AcquireTaskResponse again = Acquire();
    EXPECT_EQ(again.lease().task(), task);
    EXPECT_EQ(again.lease().attempt(), 2);
    if (std::string(task) == "finalize") {
      EXPECT_EQ(again.task().inputs(again.task().inputs_size() - 1).path(), "checkpoint/step");
    }
    ASSERT_TRUE(Complete(again).ok());
    queue_->Tick();
  }
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(Get(name).retry_count(), 0);
  EXPECT_EQ(Outcome(name), Outcome(undisturbed));
  const absl::Status status = queue_->PauseJob(name).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(ErrorReason(status), "JOB_NOT_PAUSABLE");
  EXPECT_EQ(ErrorReason(queue_->ResumeJob(name).status()), "JOB_NOT_RESUMABLE");
  EXPECT_EQ(ErrorReason(queue_->PauseJob({"default", "none"}).status()), "JOB_NOT_FOUND");
}

TEST_F(JobQueueTest, AResultThatComesDuringThePauseCounts) {
  const JobName name = Create();
  Register("w1");
  Register("w2");
  AcquireTaskResponse first = RunUntil("trial-1");
  const AcquireTaskResponse second = Acquire("w2");
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  ASSERT_TRUE(Complete(first).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSING) << "the other one still runs";
  EXPECT_EQ(Trials(name)[0].state(), v1::Trial::SUCCEEDED);
  ASSERT_TRUE(queue_->CompleteTask(Returned(second)).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
  EXPECT_EQ(Trials(name)[1].state(), v1::Trial::QUEUED);
  queue_->Tick();
  EXPECT_EQ(Trials(name).size(), 2u) << "nothing is planned";
  ASSERT_TRUE(queue_->ResumeJob(name).ok());
  queue_->Tick();
  EXPECT_EQ(Trials(name).size(), 3u);
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
}

TEST_F(JobQueueTest, AJobThatIsResumedBeforeItsWorkerHeardGoesOn) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = RunUntil("trial-1");
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  EXPECT_EQ(queue_->ResumeJob(name)->state(), v1::CompressionJob::RUNNING);
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::CONTINUE);
  ASSERT_TRUE(Complete(held).ok());
  queue_->Tick();
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
}

TEST_F(JobQueueTest, AWorkerThatDoesNotGiveBackLosesItsTaskWithTheLease) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  clock_.Advance(queue_->options().lease_duration / 2);
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::RETURN);
  clock_.Advance(queue_->options().lease_duration / 2);
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
  EXPECT_TRUE(absl::IsAborted(Complete(held)));
}

TEST_F(JobQueueTest, CancelWorksWhilePausedAndWhilePausing) {
  const JobName pending = Create();
  ASSERT_TRUE(queue_->PauseJob(pending).ok());
  EXPECT_EQ(queue_->CancelJob(pending)->state(), v1::CompressionJob::CANCELLED);

  const JobName paused = Create();
  Register();
  const AcquireTaskResponse given = RunUntil("trial-2");
  ASSERT_TRUE(queue_->PauseJob(paused).ok());
  ASSERT_TRUE(queue_->CompleteTask(Returned(given)).ok());
  EXPECT_EQ(queue_->CancelJob(paused)->state(), v1::CompressionJob::CANCELLED);
  for (const v1::Trial& trial : Trials(paused)) EXPECT_TRUE(IsFinal(trial.state()));

  const JobName pausing = Create();
  const AcquireTaskResponse held = RunUntil("trial-2");
  ASSERT_TRUE(queue_->PauseJob(pausing).ok());
  EXPECT_EQ(queue_->CancelJob(pausing)->state(), v1::CompressionJob::CANCELLING);
  EXPECT_EQ(Heartbeat(held)->desired_state(), HeartbeatResponse::ABORT);
  EXPECT_EQ(ErrorReason(queue_->PauseJob(pausing).status()), "JOB_NOT_PAUSABLE");
  // The pause was told before.
  ASSERT_TRUE(queue_->CompleteTask(Returned(held)).ok());
  EXPECT_EQ(Get(pausing).state(), v1::CompressionJob::CANCELLED);
}

TEST_F(JobQueueTest, ATrialThatRunsOutOfMemoryDuringThePauseEndsIt) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = RunUntil("trial-2");
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  ASSERT_TRUE(Fail(held, absl::ResourceExhaustedError("out of memory")).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
  EXPECT_EQ(Trials(name)[1].state(), v1::Trial::INFEASIBLE);
}

TEST_F(JobQueueTest, BadInputThatComesDuringThePauseFailsTheJob) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  ASSERT_TRUE(Fail(held, absl::NotFoundError("no folder /x")).ok());
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
}

TEST_F(JobQueueTest, LimitsStandStillDuringAPause) {
  const JobName name = Create(Limited([](auto& limits) {
    limits.set_max_queue_seconds(60);
    limits.set_max_run_seconds(100);
    limits.set_max_device_seconds(50);
  }));
  clock_.Advance(absl::Seconds(50));
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  clock_.Advance(absl::Hours(5));
  queue_->Tick();
  ASSERT_TRUE(queue_->ResumeJob(name).ok());
  clock_.Advance(absl::Seconds(9));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PENDING);
  Register();
  const AcquireTaskResponse held = Acquire();
  clock_.Advance(absl::Seconds(10));
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  ASSERT_TRUE(queue_->CompleteTask(Returned(held)).ok());
  clock_.Advance(absl::Hours(5));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PAUSED);
  EXPECT_DOUBLE_EQ(Get(name).device_seconds(), 10);
  ASSERT_TRUE(queue_->ResumeJob(name).ok());
  clock_.Advance(absl::Seconds(89));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
  clock_.Advance(absl::Seconds(1));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_THAT(Get(name).error().message(), HasSubstr("max_run_seconds"));
}

TEST_F(JobQueueTest, DeletingRemovesOnlyWhatNoOtherJobLists) {
  Register();
  const JobName first = Create();
  ASSERT_TRUE(absl::IsFailedPrecondition(queue_->DeleteJob(first)));
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  const JobName second = Create();
  ASSERT_TRUE(Complete(Acquire()).ok());  // The same prepared files.
  ASSERT_TRUE(queue_->DeleteJob(first).ok());
  EXPECT_TRUE(*artifacts_->Contains(Sha256Hex(ContentOf("prepared/model.safetensors"))));
  EXPECT_FALSE(*artifacts_->Contains(Sha256Hex(ContentOf("model/model.safetensors"))));
  EXPECT_TRUE(absl::IsNotFound(queue_->DeleteJob(first)));
}

TEST_F(JobQueueTest, AModelOfAnEarlierJobIsReadFromItsArtifacts) {
  Register();
  const JobName first = Create();
  const auto request = [](const std::string& uri) {
    v1::CreateJobRequest request = ScriptedRequest();
    request.mutable_job()->mutable_spec()->mutable_model()->set_uri(uri);
    request.mutable_job()->mutable_spec()->mutable_fine_tune()->mutable_distillation();
    return *ValidateCreateJob(request, {});
  };
  const std::string model = "artifact://" + first.ArtifactName("model");
  // Not finished: nothing is there.
  const absl::Status early = queue_->CreateJob(request(model)).status();
  EXPECT_TRUE(absl::IsInvalidArgument(early)) << early;
  EXPECT_THAT(FieldViolations(early),
              ElementsAre(testing::Field(&FieldViolation::field, "job.spec.model.uri")));
  EXPECT_TRUE(absl::IsInvalidArgument(
      queue_->CreateJob(request("artifact://projects/default/jobs/none/artifacts/model"))
          .status()));
  ASSERT_TRUE(Complete(Acquire()).ok());
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  const std::vector<std::pair<std::string, std::string>> files = {
      {"model/config.json", "{}"},
      {"model/model.safetensors", "weights"},
      {"model/run.py", "no"},
      {"gguf/model-q4.gguf", "GGUF"}};
  ASSERT_TRUE(store_
                  ->Transact([&](StoreTransaction& store) -> absl::Status {
                    for (const auto& [path, content] : files) {
                      v1::Artifact artifact;
                      artifact.set_name(first.ArtifactName(path));
                      artifact.set_sha256(Sha256Hex(content));
                      artifact.set_size_bytes(content.size());
                      RETURN_IF_ERROR(store.PutArtifact(first, artifact));
                    }
                    return absl::OkStatus();
                  })
                  .ok());
  for (const auto& [path, content] : files) StoreContent(content);

  const auto second = queue_->CreateJob(request(model));
  ASSERT_TRUE(second.ok()) << second.status();
  const auto gguf =
      queue_->CreateJob(request("artifact://" + first.ArtifactName("gguf/model-q4.gguf")));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  // The earlier job may go: its files stay as long as the later ones list them.
  ASSERT_TRUE(queue_->DeleteJob(first).ok());
  EXPECT_TRUE(*artifacts_->Contains(Sha256Hex("weights")));
  EXPECT_TRUE(*artifacts_->Contains(Sha256Hex("GGUF")));
  EXPECT_FALSE(*artifacts_->Contains(Sha256Hex("no")));
  const auto paths = [](const internal::v1::TaskSpec& task) {
    std::set<std::string> paths;
    for (const auto& input : task.inputs()) paths.insert(input.path());
    return paths;
  };
  const AcquireTaskResponse prepare = Acquire();
  EXPECT_THAT(paths(prepare.task()), ElementsAre("source/config.json", "source/model.safetensors"));
  ASSERT_TRUE(queue_->CancelJob(JobName::Parse(gguf->name()).value()).ok());
  ASSERT_TRUE(Complete(prepare).ok());
  queue_->Tick();
  const AcquireTaskResponse trial = Acquire();
  EXPECT_FALSE(paths(trial.task()).contains("source/config.json"));
  ASSERT_TRUE(Complete(trial).ok());
  // It learns from the original.
  const AcquireTaskResponse finalize = RunUntil("finalize");
  EXPECT_TRUE(paths(finalize.task()).contains("source/model.safetensors"));
  ASSERT_TRUE(Complete(finalize).ok());
  queue_->Tick();
  ASSERT_TRUE(queue_->DropIntermediates(JobName::Parse(second->name()).value()).ok());
  EXPECT_FALSE(*artifacts_->Contains(Sha256Hex("weights")));
}

TEST_F(JobQueueTest, EveryTaskReadsTheRevisionThatTheFirstOneRead) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_model()->set_uri("hf://org/name@main");
  const JobName name = Create(request);
  Register();
  const AcquireTaskResponse prepare = Acquire();
  UploadOutputs(*artifacts_, prepare.task());
  internal::v1::CompleteTaskRequest done;
  *done.mutable_lease() = prepare.lease();
  *done.mutable_result() = ScriptedResult(prepare.task());
  const std::string pinned = "hf://org/name@" + std::string(40, 'a');
  done.mutable_result()->mutable_prepare()->set_resolved_model_uri(pinned);
  ASSERT_TRUE(queue_->CompleteTask(done).ok());
  queue_->Tick();
  const AcquireTaskResponse finalize = RunUntil("finalize");
  EXPECT_EQ(finalize.task().spec().model().uri(), pinned);
  ASSERT_TRUE(Complete(finalize).ok());
  queue_->Tick();
  EXPECT_THAT(Get(name).report().notes(), testing::Contains(HasSubstr(pinned)));
  EXPECT_EQ(Get(name).spec().model().uri(), "hf://org/name@main");
}

TEST_F(JobQueueTest, ANewProcessOfAWorkerGivesItsTasksBackAtOnce) {
  Create();
  Register("w1", "a");
  const AcquireTaskResponse old = Acquire("w1", "a");
  Register("w1", "b");
  EXPECT_EQ(ErrorReason(Poll("w1", "a").status()), "WORKER_REPLACED");
  EXPECT_EQ(ErrorReason(Poll("w2", "a").status()), "WORKER_NOT_REGISTERED");
  const AcquireTaskResponse now = Acquire("w1", "b");
  EXPECT_EQ(now.lease().attempt(), 2);
  EXPECT_TRUE(absl::IsAborted(Heartbeat(old).status()));
  // The same process registering again, as after a server restart, keeps its task.
  Restart();
  Register("w1", "b");
  EXPECT_TRUE(Heartbeat(now).ok());
}

TEST_F(JobQueueTest, ALeaseOfAReplacedProcessEndsAsSuchOnceTheStoreIsBack) {
  FaultySqliteVfs disk("replaced-process-test");
  queue_.reset();
  store_.reset();
  store_ = OpenSqliteJobStore({.folder = folder_.path() + "/store", .vfs = disk.name()}).value();
  Restart();
  const JobName name = Create();
  Register("w1", "a");
  Acquire("w1", "a");
  disk.FailSyncs(SQLITE_IOERR_FSYNC);
  Register("w1", "b");
  disk.FailSyncs(SQLITE_OK);
  queue_->Tick();
  EXPECT_THAT(Events(name).back().log().text(), HasSubstr("Worker w1 was restarted"));
  queue_.reset();
  store_.reset();
}

TEST_F(JobQueueTest, PollsWaitAreWokenAndEnd) {
  Register();
  internal::v1::AcquireTaskRequest request;
  request.set_worker("w1");
  request.set_incarnation("a");
  request.mutable_wait_time()->set_seconds(20);
  std::optional<absl::StatusOr<AcquireTaskResponse>> result;
  auto poll = [&] {
    result.reset();
    return queue_->AcquireTask(request, [&](auto response) { result = std::move(response); });
  };
  poll();
  queue_->Tick();
  EXPECT_FALSE(result);
  clock_.Advance(absl::Seconds(20));
  queue_->Tick();
  ASSERT_TRUE(result);
  EXPECT_FALSE((*result)->has_lease());

  queue_->CancelAcquire(poll());
  ASSERT_TRUE(result);
  EXPECT_TRUE(absl::IsCancelled(result->status()));

  poll();
  queue_->Tick();
  Create();
  queue_->Tick();
  ASSERT_TRUE(result);
  EXPECT_TRUE((*result)->has_lease());

  Register("w2");
  request.set_worker("w2");
  poll();
  queue_->StopLeasing();
  ASSERT_TRUE(result);
  EXPECT_TRUE(absl::IsUnavailable(result->status()));
}

TEST_F(JobQueueTest, ProgressIsBoundedInRateAndNeverFalls) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  const int64_t before = Get(name).last_event_sequence();
  for (int i = 1; i <= 10; ++i) {
    clock_.Advance(absl::Milliseconds(300));
    ASSERT_TRUE(Heartbeat(held, i * 0.05).ok());
  }
  // Three seconds: the first at once, then one a second at most.
  EXPECT_LE(Get(name).last_event_sequence() - before, 3);
  EXPECT_GE(Get(name).last_event_sequence() - before, 2);
  double last = 0;
  for (const v1::JobEvent& event : Events(name)) {
    if (!event.has_progress()) continue;
    EXPECT_GE(event.progress().fraction(), last);
    last = event.progress().fraction();
  }
  EXPECT_GT(last, 0);
}

TEST_F(JobQueueTest, WhatAWorkerSaysIsToldUntilItIsStored) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  internal::v1::HeartbeatRequest request;
  *request.mutable_lease() = held.lease();
  const auto beat = [&](absl::Duration later, double fraction, const std::string& message) {
    clock_.Advance(later);
    request.set_fraction(fraction);
    request.set_message(message);
    EXPECT_TRUE(queue_->Heartbeat(request).ok());
    return Get(name).progress();
  };
  const absl::Duration turn = queue_->options().progress_interval;
  // A download does not move the fraction.
  EXPECT_EQ(beat(turn, 0, "fetching a").message(), "fetching a");
  EXPECT_EQ(beat(turn, 0, "fetching b").message(), "fetching b");
  const int64_t events = Get(name).last_event_sequence();
  EXPECT_EQ(beat(turn, 0, "fetching b").message(), "fetching b");
  EXPECT_EQ(Get(name).last_event_sequence(), events) << "nothing new";
  // What had no turn is told at the next.
  beat(turn, 0.2, "measuring");
  const double before = Get(name).progress().fraction();
  EXPECT_EQ(beat(turn / 4, 0.9, "writing").message(), "measuring");
  EXPECT_EQ(beat(turn, 0.9, "writing").message(), "writing");
  EXPECT_GT(Get(name).progress().fraction(), before);
}

TEST_F(JobQueueTest, AJobThatNobodyStartsInTimeFails) {
  const JobName name = Create(Limited([](auto& limits) { limits.set_max_queue_seconds(60); }));
  const JobName patient = Create();
  clock_.Advance(absl::Seconds(59));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::PENDING);
  clock_.Advance(absl::Seconds(1));
  Restart();
  const v1::CompressionJob job = Get(name);
  EXPECT_EQ(job.state(), v1::CompressionJob::FAILED);
  EXPECT_EQ(job.error().code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(ErrorReason(FromRpcStatus(job.error())), "LIMIT_EXCEEDED");
  EXPECT_THAT(job.error().message(), HasSubstr("limits.max_queue_seconds (60 s)"));
  Register();
  EXPECT_EQ(Acquire().lease().job(), patient.ToString());
  EXPECT_EQ(Get(patient).state(), v1::CompressionJob::RUNNING);
}

TEST_F(JobQueueTest, AJobThatWasStartedInTimeHasNoQueueLimitAnyMore) {
  const JobName name = Create(Limited([](auto& limits) { limits.set_max_queue_seconds(60); }));
  Register();
  const AcquireTaskResponse held = Acquire();
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(absl::Seconds(10));
    ASSERT_TRUE(Heartbeat(held).ok());
    queue_->Tick();
  }
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
}

TEST_F(JobQueueTest, AJobThatIsNotDoneInTimeFailsAndFreesItsWorker) {
  const JobName name = Create(Limited([](auto& limits) { limits.set_max_run_seconds(30); }));
  clock_.Advance(absl::Hours(1));  // Waiting does not count.
  queue_->Tick();
  Register();
  const AcquireTaskResponse held = RunUntil("trial-2");
  clock_.Advance(absl::Seconds(14));
  ASSERT_TRUE(Heartbeat(held).ok());
  queue_->Tick();
  clock_.Advance(absl::Seconds(16));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_THAT(Get(name).error().message(), HasSubstr("limits.max_run_seconds (30 s)"));
  EXPECT_TRUE(absl::IsAborted(Heartbeat(held).status()));
  EXPECT_FALSE(Poll()->has_lease());
}

TEST_F(JobQueueTest, DeviceSecondsCountWhatWorkersWereHeldFor) {
  v1::CreateJobRequest request = Limited([](auto& limits) { limits.set_max_device_seconds(100); });
  request.mutable_job()->mutable_spec()->mutable_search()->set_parallelism(2);
  const JobName name = Create(request);
  Register("w1");
  Register("w2");
  AcquireTaskResponse first = Acquire("w1");
  const auto pass = [&](int seconds, const std::vector<AcquireTaskResponse>& held) {
    for (int i = 0; i < seconds; ++i) {
      clock_.Advance(absl::Seconds(1));
      for (const AcquireTaskResponse& lease : held) ASSERT_TRUE(Heartbeat(lease).ok());
      queue_->Tick();
    }
  };
  pass(20, {first});
  ASSERT_TRUE(Complete(first).ok());
  EXPECT_DOUBLE_EQ(Get(name).device_seconds(), 20);
  queue_->Tick();
  pass(300, {});  // Nobody works on it.
  EXPECT_DOUBLE_EQ(Get(name).device_seconds(), 20);
  first = Acquire("w1");
  const AcquireTaskResponse second = Acquire("w2");
  pass(39, {first, second});
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
  // Both hold a worker: 20 + 2 x 40.
  clock_.Advance(absl::Seconds(1));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_THAT(Get(name).error().message(), HasSubstr("limits.max_device_seconds (100 s)"));
  EXPECT_DOUBLE_EQ(Get(name).device_seconds(), 100);
}

TEST_F(JobQueueTest, AWallClockThatIsSetChangesNoDeviceSeconds) {
  const JobName name = Create();
  Register();
  const AcquireTaskResponse held = Acquire();
  clock_.JumpWallClock(-absl::Hours(1));
  clock_.Advance(absl::Seconds(3));
  clock_.JumpWallClock(absl::Hours(3));
  ASSERT_TRUE(Complete(held).ok());
  EXPECT_DOUBLE_EQ(Get(name).device_seconds(), 3);
}

// Before and after the clock is set, in the same process and the next.
TEST_F(JobQueueTest, AWallClockThatIsSetEndsNoJobAndSparesNone) {
  const auto limited = [&] {
    return Create(Limited([](auto& limits) { limits.set_max_queue_seconds(60); }));
  };
  for (const absl::Duration jump : {absl::Hours(1), -absl::Hours(2), absl::Hours(300)}) {
    const JobName before = limited();
    clock_.Advance(absl::Seconds(20));
    clock_.JumpWallClock(jump);
    queue_->Tick();
    const JobName after = limited();
    clock_.Advance(absl::Seconds(20));
    queue_->Tick();
    Restart();
    const JobName last = limited();
    const auto states = [&] {
      return std::vector<v1::CompressionJob::State>{Get(before).state(), Get(after).state(),
                                                    Get(last).state()};
    };
    using Job = v1::CompressionJob;
    EXPECT_THAT(states(), ElementsAre(Job::PENDING, Job::PENDING, Job::PENDING));
    for (int ended = 1; ended <= 3; ++ended) {
      clock_.Advance(absl::Seconds(19));
      queue_->Tick();
      EXPECT_EQ(Get(ended == 1 ? before : ended == 2 ? after : last).state(), Job::PENDING);
      clock_.Advance(absl::Seconds(1));
      queue_->Tick();
      EXPECT_EQ(Get(ended == 1 ? before : ended == 2 ? after : last).state(), Job::FAILED);
    }
  }
}

TEST_F(JobQueueTest, ASearchThatTakesTooLongGoesOnWithTheBestSoFar) {
  v1::CreateJobRequest request = Limited([](auto& limits) { limits.set_max_search_seconds(60); });
  request.mutable_job()->mutable_spec()->mutable_search()->set_parallelism(3);
  const JobName name = Create(request);
  Register();
  Register("w2");
  const AcquireTaskResponse running = RunUntil("trial-3");
  clock_.Advance(absl::Seconds(10));
  ASSERT_TRUE(Heartbeat(running).ok());
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(absl::Seconds(10));
    ASSERT_TRUE(Heartbeat(running).ok());
    queue_->Tick();
  }
  // What waited is over, what runs may finish.
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
  EXPECT_FALSE(Poll("w2")->has_lease());
  EXPECT_EQ(Heartbeat(running)->desired_state(), HeartbeatResponse::CONTINUE);
  ASSERT_TRUE(Complete(running).ok());
  queue_->Tick();
  const AcquireTaskResponse last = Acquire();
  EXPECT_EQ(last.lease().task(), "finalize");
  ASSERT_TRUE(Complete(last).ok());
  queue_->Tick();
  const v1::CompressionJob job = Get(name);
  EXPECT_EQ(job.state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(job.progress().completed_trial_count(), job.progress().trial_count());
  EXPECT_LT(job.progress().trial_count(), 8);
  EXPECT_THAT(job.report().notes(),
              testing::Contains(HasSubstr("ended the search after 3 measured trials of 8")));
}

TEST_F(JobQueueTest, ASearchWithoutAResultWithinTheBudgetIsNotEnded) {
  const JobName name = Create(Limited([](auto& limits) { limits.set_max_search_seconds(1); }));
  Register();
  const AcquireTaskResponse first = RunUntil("trial-1");
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(absl::Seconds(5));
    ASSERT_TRUE(Heartbeat(first).ok());
    queue_->Tick();
  }
  ASSERT_TRUE(Complete(first).ok());
  queue_->Tick();
  clock_.Advance(absl::Seconds(1));
  queue_->Tick();
  AcquireTaskResponse held = Acquire();
  // The 4 bits of the first trial fit.
  EXPECT_EQ(held.lease().task(), "finalize");
  ASSERT_TRUE(Complete(held).ok());
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::SUCCEEDED);
}

TEST_F(JobQueueTest, ASearchThatCannotEndYetHidesNoHardLimit) {
  const JobName name = Create(Limited([](auto& limits) {
    limits.set_max_search_seconds(10);
    limits.set_max_run_seconds(60);
  }));
  Register();
  AcquireTaskResponse held = RunUntil("trial-1");
  for (int i = 0; i < 5; ++i) {
    clock_.Advance(absl::Seconds(10));
    ASSERT_TRUE(Heartbeat(held).ok());
    queue_->Tick();
  }
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::RUNNING);
  clock_.Advance(absl::Seconds(10));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
  EXPECT_THAT(Get(name).error().message(), HasSubstr("limits.max_run_seconds (60 s)"));
}

TEST_F(JobQueueTest, LimitsThatPassedTogetherStrikeTogether) {
  const JobName name = Create(Limited([](auto& limits) {
    limits.set_max_search_seconds(10);
    limits.set_max_run_seconds(60);
  }));
  Register();
  RunUntil("trial-1");
  // Nobody looked in between.
  clock_.Advance(absl::Hours(1));
  queue_->Tick();
  EXPECT_EQ(Get(name).state(), v1::CompressionJob::FAILED);
}

TEST_F(JobQueueTest, SearchesThatCannotEndYetKeepNoOtherLimitWaiting) {
  // More than one look takes, each waiting for a worker for its first trial.
  constexpr int kJobs = 150;
  for (int i = 0; i < kJobs; ++i) {
    v1::CreateJobRequest request = Limited([](auto& limits) { limits.set_max_search_seconds(1); });
    request.set_parent("projects/many");
    Create(request);
  }
  Register();
  for (int i = 0; i < kJobs; ++i) {
    const AcquireTaskResponse held = Acquire();
    ASSERT_EQ(held.lease().task(), "prepare") << "those are older than any trial";
    ASSERT_TRUE(Complete(held).ok());
  }
  queue_->Tick();
  const JobName other = Create(Limited([](auto& limits) { limits.set_max_queue_seconds(60); }));
  for (int i = 0; i < 70; ++i) {
    clock_.Advance(absl::Seconds(1));
    queue_->Tick();
  }
  EXPECT_EQ(Get(other).state(), v1::CompressionJob::FAILED);
}

TEST_F(JobQueueTest, AResultAfterItsTimeEndsTheSearchAlsoWhileTheJobPauses) {
  v1::CreateJobRequest request = Limited([](auto& limits) { limits.set_max_search_seconds(1); });
  request.mutable_job()->mutable_spec()->mutable_search()->set_parallelism(3);
  const JobName name = Create(request);
  Register();
  const AcquireTaskResponse first = RunUntil("trial-1");
  clock_.Advance(absl::Seconds(5));
  queue_->Tick();
  ASSERT_TRUE(queue_->PauseJob(name).ok());
  ASSERT_TRUE(Complete(first).ok());
  ASSERT_TRUE(queue_->ResumeJob(name).ok());
  queue_->Tick();
  EXPECT_EQ(Acquire().lease().task(), "finalize");
  EXPECT_EQ(Get(name).progress().completed_trial_count(), 3);
}

TEST_F(JobQueueTest, ProjectsShareTheWorkersByWeight) {
  JobQueueOptions options;
  options.projects.projects["heavy"].weight = 3;
  queue_ =
      JobQueue::Create(options, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  // Many jobs of one project first: they are older.
  for (const char* project : {"light", "heavy"}) {
    for (int i = 0; i < 30; ++i) {
      v1::CreateJobRequest request = ScriptedRequest();
      request.set_parent(absl::StrCat("projects/", project));
      Create(request);
    }
  }
  Register();
  std::map<std::string, int> seconds;
  for (int i = 0; i < 40; ++i) {
    const AcquireTaskResponse held = Acquire();
    clock_.Advance(absl::Seconds(5));
    seconds[JobName::Parse(held.lease().job())->project] += 5;
    ASSERT_TRUE(Complete(held).ok());
    queue_->Tick();
  }
  EXPECT_NEAR(seconds["heavy"], 150, 5);
  EXPECT_NEAR(seconds["light"], 50, 5);
}

TEST_F(JobQueueTest, AWorkerKeepsTheJobItHoldsTheModelOf) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_search()->set_parallelism(2);
  const JobName first = Create(request);
  Register();
  ASSERT_TRUE(Complete(Acquire()).ok());
  const JobName second = Create(request);
  queue_->Tick();
  const auto poll = [&](const std::string& prepared) {
    internal::v1::AcquireTaskRequest asked;
    asked.set_worker("w1");
    asked.set_incarnation("a");
    asked.set_prepared_job(prepared);
    AcquireTaskResponse held;
    queue_->AcquireTask(asked, [&](auto response) { held = *response; });
    queue_->Tick();
    return held;
  };
  // The second job's PREPARE is older than the first one's trials.
  AcquireTaskResponse held = poll(first.ToString());
  EXPECT_EQ(held.lease().job(), first.ToString());
  ASSERT_TRUE(Complete(held).ok());
  // But it does not wait for ever.
  clock_.Advance(queue_->options().affinity_patience);
  EXPECT_EQ(poll(first.ToString()).lease().job(), second.ToString());
}

TEST_F(JobQueueTest, AWorkerGetsOnlyWhatItsMemoryHolds) {
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->mutable_spec()->mutable_limits()->set_min_device_memory_bytes(1000);
  const JobName large = Create(request);
  const JobName any = Create();
  Register("unknown");
  internal::v1::RegisterWorkerRequest sized;
  sized.set_worker("sized");
  sized.set_incarnation("a");
  sized.set_device_memory_bytes(999);
  ASSERT_TRUE(queue_->RegisterWorker(sized).ok());
  EXPECT_EQ(Acquire("sized").lease().job(), any.ToString());
  EXPECT_FALSE(Poll("unknown")->has_lease());
  sized.set_incarnation("b");
  sized.set_device_memory_bytes(1000);
  ASSERT_TRUE(queue_->RegisterWorker(sized).ok());
  EXPECT_EQ(Acquire("sized", "b").lease().job(), large.ToString());
}

TEST_F(JobQueueTest, JobsThatNoWorkerCanReadHoldUpNobody) {
  v1::CreateJobRequest hub = ScriptedRequest();
  hub.mutable_job()->mutable_spec()->mutable_model()->set_uri("hf://org/name@main");
  // More than are looked at of a queue.
  std::vector<JobName> waiting;
  for (int i = 0; i < 200; ++i) waiting.push_back(Create(hub));
  const JobName shipped = Create();
  internal::v1::RegisterWorkerRequest offline;
  offline.set_worker("offline");
  offline.set_incarnation("a");
  offline.add_readable_uris("file:///");
  ASSERT_TRUE(queue_->RegisterWorker(offline).ok());
  EXPECT_EQ(Acquire("offline").lease().job(), shipped.ToString());
  offline.set_worker("another");
  ASSERT_TRUE(queue_->RegisterWorker(offline).ok());
  EXPECT_FALSE(Poll("another")->has_lease());
  internal::v1::RegisterWorkerRequest online = offline;
  online.set_worker("online");
  online.add_readable_uris("hf://");
  ASSERT_TRUE(queue_->RegisterWorker(online).ok());
  EXPECT_EQ(Acquire("online").lease().job(), waiting[0].ToString());
}

TEST_F(JobQueueTest, WhatAWorkerCanReadIsBounded) {
  internal::v1::RegisterWorkerRequest worker;
  worker.set_worker("w");
  worker.set_incarnation("a");
  worker.add_readable_uris(std::string(513, 'x'));
  const absl::Status refused = queue_->RegisterWorker(worker);
  ASSERT_EQ(FieldViolations(refused).size(), 1u) << refused;
  EXPECT_EQ(FieldViolations(refused)[0].field, "readable_uris");
  worker.clear_readable_uris();
  for (int i = 0; i < 65; ++i) worker.add_readable_uris("hf://");
  EXPECT_TRUE(absl::IsInvalidArgument(queue_->RegisterWorker(worker)));
}

TEST_F(JobQueueTest, QuotasRefuseWithAHintAndKeepRepeatedRequests) {
  JobQueueOptions options;
  options.projects.fallback.max_queued_jobs = 2;
  options.projects.projects["small"].max_artifact_bytes = 1;
  options.projects.max_queued_jobs = 4;
  queue_ =
      JobQueue::Create(options, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  const auto create = [&](const std::string& project, const std::string& request_id = "") {
    v1::CreateJobRequest request = ScriptedRequest();
    request.set_parent("projects/" + project);
    request.set_request_id(request_id);
    return queue_->CreateJob(*ValidateCreateJob(request, {}));
  };
  const auto first = create("a", "request");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(create("a").ok());
  const absl::Status refused = create("a").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrorReason(refused), "PROJECT_QUEUE_FULL");
  EXPECT_EQ(RetryDelay(refused), absl::Seconds(10));
  EXPECT_EQ(create("a", "request")->name(), first->name());
  // What fails otherwise takes no place.
  v1::CreateJobRequest same = ScriptedRequest();
  same.set_parent("projects/b");
  same.set_job_id("same");
  ASSERT_TRUE(queue_->CreateJob(*ValidateCreateJob(same, {})).ok());
  ASSERT_TRUE(absl::IsAlreadyExists(queue_->CreateJob(*ValidateCreateJob(same, {})).status()));
  ASSERT_TRUE(create("b").ok());
  EXPECT_EQ(ErrorReason(create("c").status()), "QUEUE_FULL");
  // Started jobs wait no more; seen within a second.
  Register();
  const AcquireTaskResponse held = Acquire();
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(create("small").ok());
  EXPECT_EQ(ErrorReason(create("small").status()), "QUEUE_FULL");
  ASSERT_TRUE(Complete(held).ok());
  StoreReader::QueueUsage usage;
  ASSERT_TRUE(store_
                  ->Read([&](StoreReader& reader) {
                    auto found = reader.Usage(JobName::Parse(held.lease().job())->project);
                    if (found.ok()) usage = *found;
                    return found.status();
                  })
                  .ok());
  EXPECT_EQ(usage.project_artifact_bytes,
            static_cast<int64_t>(ContentOf("prepared/model.safetensors").size() +
                                 ContentOf("report/scores.json").size()));
}

TEST_F(JobQueueTest, AProjectWhoseArtifactsTakeTooMuchGetsNoMoreJobs) {
  JobQueueOptions options;
  options.projects.fallback.max_artifact_bytes = 20;
  queue_ =
      JobQueue::Create(options, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  const JobName name = Create();
  Register();
  ASSERT_TRUE(Complete(RunUntil("finalize")).ok());
  queue_->Tick();
  clock_.Advance(absl::Seconds(1));
  const absl::Status refused =
      queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).status();
  EXPECT_EQ(ErrorReason(refused), "PROJECT_SPACE_USED_UP");
  ASSERT_TRUE(queue_->DeleteJob(name).ok());
  clock_.Advance(absl::Seconds(1));
  Create();
}

TEST_F(JobQueueTest, OtherQuotasHoldFromNowOn) {
  Register("w1");
  Register("w2");
  Create();
  Create();
  ProjectPolicies policies;
  policies.fallback.max_queued_jobs = 2;
  policies.fallback.max_running_tasks = 1;
  queue_->SetPolicies(policies);
  EXPECT_EQ(ErrorReason(queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).status()),
            "PROJECT_QUEUE_FULL");
  Acquire("w1");
  EXPECT_FALSE(Poll("w2")->has_lease());
  policies.fallback.max_running_tasks = 2;
  queue_->SetPolicies(policies);
  Acquire("w2");
}

TEST_F(JobQueueTest, ConcurrentCallersDoNotPassAQuota) {
  JobQueueOptions options;
  options.projects.fallback.max_queued_jobs = 20;
  queue_ =
      JobQueue::Create(options, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, observer_)
          .value();
  std::atomic<int> created = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 10; ++j) {
        created += queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).ok();
        clock_.Advance(absl::Milliseconds(300));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(created, 20);
  // Calls in flight count twice at worst, for a second.
  clock_.Advance(absl::Seconds(1));
  while (queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {})).ok()) ++created;
  EXPECT_EQ(created, 20);
}

TEST_F(JobQueueTest, HigherPriorityGoesFirst) {
  Register();
  Create();
  auto request = ScriptedRequest();
  request.mutable_job()->set_priority(5);
  const JobName urgent = Create(request);
  EXPECT_EQ(Acquire().lease().job(), urgent.ToString());
}

// What rpc/ does with the queue, on plain threads: the thread sanitizer sees every lock in between.
TEST(JobQueueThreads, WorkersClientsAndWatchersAtOnce) {
  constexpr int kWorkers = 3;
  constexpr int kJobs = 6;
  TempFolder folder;
  CountingIds ids;
  WatchHub watches;
  QueueObserver observer;
  const auto store = OpenSqliteJobStore({.folder = folder.path() + "/store"}).value();
  const auto artifacts = OpenLocalArtifactStore({.folder = folder.path() + "/artifacts"}).value();
  const auto proposer = MakeSearchProposer();
  const auto queue =
      JobQueue::Create({}, *store, *artifacts, RealClock(), ids, *proposer, watches, observer)
          .value();
  std::atomic<bool> stop = false;
  std::thread ticker([&] {
    while (!stop) {
      queue->Tick();
      queue->WaitForWork();
    }
  });
  std::vector<std::thread> workers;
  for (int i = 0; i < kWorkers; ++i) {
    workers.emplace_back([&, i] {
      internal::v1::RegisterWorkerRequest hello;
      hello.set_worker(absl::StrCat("w", i));
      hello.set_incarnation("a");
      ASSERT_TRUE(queue->RegisterWorker(hello).ok());
      while (true) {
        internal::v1::AcquireTaskRequest request;
        request.set_worker(hello.worker());
        request.set_incarnation("a");
        request.mutable_wait_time()->set_seconds(10);
        absl::Notification answered;
        absl::StatusOr<AcquireTaskResponse> held;
        queue->AcquireTask(request, [&](auto response) {
          held = std::move(response);
          answered.Notify();
        });
        answered.WaitForNotification();
        if (!held.ok()) return;  // StopLeasing.
        if (!held->has_lease()) continue;
        internal::v1::HeartbeatRequest beat;
        *beat.mutable_lease() = held->lease();
        beat.set_fraction(0.5);
        beat.add_logs()->set_text("half");
        queue->Heartbeat(beat).IgnoreError();  // The job may have been cancelled.
        UploadOutputs(*artifacts, held->task());
        internal::v1::CompleteTaskRequest done;
        *done.mutable_lease() = held->lease();
        *done.mutable_result() = ScriptedResult(held->task());
        const absl::Status status = queue->CompleteTask(done);
        EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
      }
    });
  }
  // Each client creates a job and follows it to its end; every other one cancels it on the way.
  std::vector<std::thread> clients;
  for (int i = 0; i < kJobs; ++i) {
    clients.emplace_back([&, i] {
      const auto job = queue->CreateJob(*ValidateCreateJob(ScriptedRequest(), {}));
      ASSERT_TRUE(job.ok()) << job.status();
      const JobName name = JobName::Parse(job->name()).value();
      absl::Mutex mutex;
      bool changed = true;
      const int64_t subscription = watches.Subscribe(job->name(), [&] {
        absl::MutexLock lock(&mutex);
        changed = true;
      });
      int64_t seen = 0;
      v1::CompressionJob::State state = v1::CompressionJob::PENDING;
      bool cancelled = false;
      while (!IsFinal(state)) {
        {
          absl::MutexLock lock(&mutex);
          ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&changed), absl::Seconds(60)));
          changed = false;
        }
        std::vector<v1::JobEvent> events;
        ASSERT_TRUE(store
                        ->Read([&](StoreReader& reader) {
                          auto list = reader.ListEvents(name, seen, 1000);
                          if (list.ok()) events = *list;
                          return list.status();
                        })
                        .ok());
        for (const v1::JobEvent& event : events) {
          EXPECT_EQ(event.sequence(), ++seen);
          if (event.has_state_changed()) state = event.state_changed().state();
        }
        if (i % 2 == 1 && seen > 8 && !cancelled) {
          cancelled = true;
          EXPECT_TRUE(queue->CancelJob(name).ok());
        }
      }
      watches.Unsubscribe(subscription);
      EXPECT_EQ(state, i % 2 == 1 ? v1::CompressionJob::CANCELLED : v1::CompressionJob::SUCCEEDED);
      if (i == 0) {
        EXPECT_TRUE(queue->DeleteJob(name).ok());
      }
    });
  }
  for (std::thread& client : clients) client.join();
  queue->StopLeasing();
  for (std::thread& worker : workers) worker.join();
  stop = true;
  queue->Wake();
  ticker.join();
}

}  // namespace
}  // namespace qpruner::server
