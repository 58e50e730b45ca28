#include "server/retention/retention_sweep.h"

#include <sys/stat.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/retention/retention_policy.h"
#include "server/store/sqlite_job_store.h"
#include "server/testing/damaged_record.h"
#include "server/testing/scripted_job.h"
#include "server/validation/job_validation.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class Removals final : public QueueObserver {
 public:
  void OnArtifactRemoved(int64_t size_bytes) override {
    ++count;
    bytes += size_bytes;
  }
  void OnJobExpired() override { ++jobs; }
  int count = 0;
  int64_t bytes = 0;
  int jobs = 0;
};

class RetentionSweepTest : public testing::Test {
 protected:
  RetentionSweepTest() {
    store_ = OpenSqliteJobStore({.folder = folder_.path() + "/store"}).value();
    artifacts_ =
        OpenLocalArtifactStore({.folder = folder_.path() + "/artifacts", .clock = clock_}).value();
    queue_ =
        JobQueue::Create({}, *store_, *artifacts_, clock_, ids_, *proposer_, watches_, removals_)
            .value();
    internal::v1::RegisterWorkerRequest worker;
    worker.set_worker("w1");
    worker.set_incarnation("a");
    EXPECT_TRUE(queue_->RegisterWorker(worker).ok());
  }
  JobName Create() {
    return JobName::Parse(queue_->CreateJob(*ValidateCreateJob(ScriptedRequest(), {}))->name())
        .value();
  }
  AcquireTaskResponse Acquire() {
    internal::v1::AcquireTaskRequest request;
    request.set_worker("w1");
    request.set_incarnation("a");
    std::optional<AcquireTaskResponse> result;
    queue_->AcquireTask(request, [&](auto response) { result = *response; });
    if (!result) queue_->Tick();
    EXPECT_TRUE(result && result->has_lease());
    return *result;
  }
  void Complete(const AcquireTaskResponse& held) {
    UploadOutputs(*artifacts_, held.task());
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_result() = ScriptedResult(held.task());
    EXPECT_TRUE(queue_->CompleteTask(request).ok());
    queue_->Tick();
  }
  JobName RunToTheEnd() {
    JobName name = Create();
    while (true) {
      const AcquireTaskResponse held = Acquire();
      Complete(held);
      if (held.lease().task() == "finalize") return name;
    }
  }
  std::string Store(const std::string& content) {
    const std::string sha256 = Sha256Hex(content);
    auto writer = artifacts_->Create(sha256, static_cast<int64_t>(content.size()));
    EXPECT_TRUE(writer.ok() && (*writer)->Append(content).ok() && (*writer)->Commit().ok());
    return sha256;
  }
  std::set<std::string> Stored() {
    std::set<std::string> stored;
    EXPECT_TRUE(artifacts_
                    ->List([&](const StoredArtifact& artifact) {
                      stored.insert(artifact.sha256);
                      return absl::OkStatus();
                    })
                    .ok());
    return stored;
  }
  std::set<std::string> Listed(const JobName& name) {
    std::set<std::string> paths;
    const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const std::vector<v1::Artifact> artifacts, reader.ListArtifacts(name));
      for (const auto& artifact : artifacts) {
        paths.insert(ArtifactName::Parse(artifact.name())->path);
      }
      return absl::OkStatus();
    });
    if (absl::IsNotFound(status)) return {"job is gone"};
    EXPECT_TRUE(status.ok()) << status;
    return paths;
  }
  void Sweep(const RetentionPolicy& policy = {}) {
    RetentionSweep sweep(policy, *store_, *artifacts_, *queue_, removals_, clock_);
    const absl::Status status = sweep.Run([] { return false; });
    EXPECT_TRUE(status.ok()) << status;
  }

  TempFolder folder_;
  SimulatedClock clock_;
  CountingIds ids_;
  WatchHub watches_;
  Removals removals_;
  std::unique_ptr<JobStore> store_;
  std::unique_ptr<ArtifactStore> artifacts_;
  std::unique_ptr<TrialProposer> proposer_ = MakeSearchProposer();
  std::unique_ptr<JobQueue> queue_;
};

TEST_F(RetentionSweepTest, CollectsWhatNoJobListsOnceItIsOld) {
  const JobName job = RunToTheEnd();
  const std::set<std::string> of_the_job = Stored();
  ASSERT_EQ(of_the_job.size(), 3u);
  Store("left by an attempt that died");
  Sweep();
  EXPECT_EQ(Stored().size(), 4u) << "it may be waiting for its result";
  clock_.Advance(absl::Minutes(59));
  Sweep();
  EXPECT_EQ(Stored().size(), 4u);
  EXPECT_EQ(removals_.count, 0);
  clock_.Advance(absl::Minutes(1));
  Sweep();
  EXPECT_EQ(Stored(), of_the_job);
  EXPECT_EQ(removals_.count, 1);
  EXPECT_EQ(removals_.bytes, 28);
  // Jobs are kept for ever unless told otherwise.
  clock_.Advance(absl::Hours(24 * 365));
  Sweep();
  EXPECT_EQ(Stored(), of_the_job);
}

TEST_F(RetentionSweepTest, LeavesWhatATaskAtWorkMayHaveStored) {
  Create();
  const std::string before = Store("older than the lease");
  clock_.Advance(absl::Minutes(5));
  const AcquireTaskResponse held = Acquire();
  const std::string uploaded = Store("for a result that comes hours later");
  for (int hour = 0; hour < 5; ++hour) {
    clock_.Advance(absl::Hours(1));
    internal::v1::HeartbeatRequest heartbeat;
    *heartbeat.mutable_lease() = held.lease();
    ASSERT_TRUE(queue_->Heartbeat(heartbeat).ok());
    Sweep();
  }
  EXPECT_THAT(Stored(), UnorderedElementsAre(uploaded));
  Complete(held);
  Sweep();
  EXPECT_FALSE(Stored().contains(uploaded));
}

TEST_F(RetentionSweepTest, ContentThatIsStoredAgainIsNew) {
  const std::string sha256 = Store("again");
  clock_.Advance(absl::Hours(2));
  Store("again");
  Sweep();
  EXPECT_THAT(Stored(), UnorderedElementsAre(sha256));
}

TEST_F(RetentionSweepTest, ADeletionLeavesWhatATaskAtWorkMayJustHaveStored) {
  const JobName first = RunToTheEnd();
  Create();
  clock_.Advance(absl::Minutes(5));
  const AcquireTaskResponse held = Acquire();
  // The second job's attempt stores the same content, and its result is not there yet.
  UploadOutputs(*artifacts_, held.task());
  ASSERT_TRUE(queue_->DeleteJob(first).ok());
  EXPECT_EQ(Stored().size(), 2u) << "model/ was the first job's alone";
  Complete(held);
  clock_.Advance(absl::Hours(2));
  Sweep();
  EXPECT_EQ(Stored().size(), 2u);
}

TEST_F(RetentionSweepTest, DeletesFinishedJobsAfterTheirTime) {
  const RetentionPolicy policy{.keep_finished_jobs = absl::Hours(48)};
  const JobName old = RunToTheEnd();
  clock_.Advance(absl::Hours(30));
  const JobName young = RunToTheEnd();
  const JobName unfinished = Create();
  clock_.Advance(absl::Hours(17));
  Sweep(policy);
  EXPECT_EQ(removals_.jobs, 0);
  clock_.Advance(absl::Hours(1));
  Sweep(policy);
  EXPECT_EQ(removals_.jobs, 1);
  EXPECT_THAT(Listed(old), UnorderedElementsAre("job is gone"));
  EXPECT_EQ(Listed(young).size(), 3u);
  EXPECT_EQ(Stored().size(), 3u);
  clock_.Advance(absl::Hours(24 * 30));
  Sweep(policy);
  EXPECT_THAT(Listed(young), UnorderedElementsAre("job is gone"));
  EXPECT_THAT(Stored(), IsEmpty());
  EXPECT_THAT(Listed(unfinished), IsEmpty()) << "waits, however long";
}

TEST_F(RetentionSweepTest, DropsWhatStagesHandedToEachOtherSooner) {
  const RetentionPolicy policy{.keep_intermediates = absl::Hours(1)};
  const JobName job = RunToTheEnd();
  Sweep(policy);
  EXPECT_EQ(Listed(job).size(), 3u);
  clock_.Advance(absl::Hours(1));
  Sweep(policy);
  EXPECT_THAT(Listed(job), UnorderedElementsAre("report/scores.json", "model/model.safetensors"));
  EXPECT_EQ(Stored().size(), 2u);
  EXPECT_EQ(removals_.count, 1);
  // Later sweeps know that without a look at its files, also of a job that had none.
  const auto dropped = [&] {
    bool is = false;
    EXPECT_TRUE(store_
                    ->Read([&](StoreReader& reader) -> absl::Status {
                      ASSIGN_OR_RETURN(const auto record, reader.GetJob(job));
                      is = record.intermediates_dropped();
                      return absl::OkStatus();
                    })
                    .ok());
    return is;
  };
  EXPECT_TRUE(dropped());
  ASSERT_TRUE(store_
                  ->Transact([&](StoreTransaction& store) {
                    v1::Artifact more;
                    more.set_name(job.ArtifactName("prepared/more"));
                    more.set_sha256(Sha256Hex("more"));
                    return store.PutArtifact(job, more);
                  })
                  .ok());
  Sweep(policy);
  EXPECT_EQ(Listed(job).size(), 3u);
  EXPECT_TRUE(absl::IsNotFound(queue_->DropIntermediates({"default", "none"})));
  EXPECT_TRUE(absl::IsFailedPrecondition(queue_->DropIntermediates(Create())));
}

TEST_F(RetentionSweepTest, StopsWhenAskedTo) {
  Store("old");
  clock_.Advance(absl::Hours(2));
  RetentionSweep sweep({.keep_finished_jobs = absl::Hours(1)}, *store_, *artifacts_, *queue_,
                       removals_, clock_);
  EXPECT_TRUE(sweep.Run([] { return true; }).ok());
  EXPECT_EQ(Stored().size(), 1u);
}

TEST(ParseRetention, TakesDaysAndAbseilsDurations) {
  EXPECT_EQ(*ParseRetention("30d"), absl::Hours(720));
  EXPECT_EQ(*ParseRetention("1d12h"), absl::Hours(36));
  EXPECT_EQ(*ParseRetention("90m"), absl::Minutes(90));
  EXPECT_EQ(*ParseRetention("0"), absl::ZeroDuration());
  EXPECT_EQ(*ParseRetention("forever"), absl::InfiniteDuration());
  for (const char* bad :
       {"", "30", "d", "-1d", "-1h", "1w", "1h1d", "inf", "99999999999d", "1dinf"}) {
    const auto parsed = ParseRetention(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(parsed.status())) << bad;
  }
}

TEST_F(RetentionSweepTest, AJobThatCannotBeReadKeepsNoOther) {
  const JobName damaged = RunToTheEnd();
  const JobName other = RunToTheEnd();
  ASSERT_TRUE(store_
                  ->Transact([&](StoreTransaction& store) -> absl::Status {
                    ASSIGN_OR_RETURN(auto artifacts, store.ListArtifacts(damaged));
                    MakeUnreadable(artifacts.at(0));
                    return store.PutArtifact(damaged, artifacts[0]);
                  })
                  .ok());
  clock_.Advance(absl::Hours(48));
  Sweep({.keep_finished_jobs = absl::Hours(24)});
  EXPECT_THAT(Listed(other), UnorderedElementsAre("job is gone"));
  EXPECT_TRUE(absl::IsDataLoss(queue_->DeleteJob(damaged)));
}

}  // namespace
}  // namespace qpruner::server
