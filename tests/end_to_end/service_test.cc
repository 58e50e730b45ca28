// Whole jobs through real processes.
#include <sqlite3.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/sha256.h"
#include "google/protobuf/util/time_util.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "tests/end_to_end/service_under_test.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

v1::CompressionJob Get(ServiceUnderTest& service, const std::string& name) {
  grpc::ClientContext context;
  v1::GetJobRequest request;
  request.set_name(name);
  v1::CompressionJob job;
  EXPECT_TRUE(service.jobs().GetJob(&context, request, &job).ok());
  return job;
}

std::vector<v1::Trial> Trials(ServiceUnderTest& service, const std::string& name) {
  grpc::ClientContext context;
  v1::ListTrialsRequest request;
  request.set_parent(name);
  v1::ListTrialsResponse response;
  EXPECT_TRUE(service.jobs().ListTrials(&context, request, &response).ok());
  return {response.trials().begin(), response.trials().end()};
}

std::vector<v1::Artifact> Artifacts(ServiceUnderTest& service, const std::string& name) {
  grpc::ClientContext context;
  v1::ListArtifactsRequest request;
  request.set_parent(name);
  v1::ListArtifactsResponse response;
  EXPECT_TRUE(service.jobs().ListArtifacts(&context, request, &response).ok());
  return {response.artifacts().begin(), response.artifacts().end()};
}

std::string Download(ServiceUnderTest& service, const std::string& name) {
  grpc::ClientContext context;
  v1::DownloadArtifactRequest request;
  request.set_name(name);
  const auto reader = service.jobs().DownloadArtifact(&context, request);
  std::string content;
  v1::DownloadArtifactResponse response;
  while (reader->Read(&response)) content += response.data();
  EXPECT_TRUE(reader->Finish().ok()) << name;
  return content;
}

const v1::JobReport::Row* FindRow(const v1::CompressionJob& job, const std::string& label) {
  for (const v1::JobReport::Row& row : job.report().rows()) {
    if (row.label() == label) return &row;
  }
  return nullptr;
}

TEST(Service, CompressesTheShippedModelWithinItsBudget) {
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const v1::CompressionJob created = Create(service, SmallJob());
  FollowJob(service, created.name(), absl::Minutes(4));
  const v1::CompressionJob job = Get(service, created.name());
  ASSERT_EQ(job.state(), v1::CompressionJob::SUCCEEDED) << job.error().ShortDebugString();
  for (const char* label :
       {"original", "pruned", "uniform-4", "uniform-8", "chosen", "fine-tuned"}) {
    ASSERT_NE(FindRow(job, label), nullptr) << label;
  }
  for (const v1::JobReport::Row& row : job.report().rows()) {
    if (!absl::StartsWith(row.label(), "uniform-")) {
      EXPECT_GT(row.metrics().tokens_per_second(), 0) << row.label();
    }
  }
  EXPECT_EQ(job.report().task_uses_size(), job.progress().trial_count() + 2);
  for (const v1::TaskUse& use : job.report().task_uses()) {
    EXPECT_GT(use.seconds(), 0) << use.task();
    EXPECT_GT(use.peak_host_memory_bytes(), int64_t{16} << 20) << use.task();
    EXPECT_EQ(use.peak_device_memory_bytes(), 0) << use.task();
  }
  EXPECT_LE(FindRow(job, "chosen")->metrics().weight_bytes(), job.report().budget_bytes());
  EXPECT_LT(FindRow(job, "fine-tuned")->metrics().perplexity(),
            FindRow(job, "pruned")->metrics().perplexity());
  EXPECT_EQ(WEXITSTATUS(service.Stop()), 0);
}

// Claim 7 of docs/evidence.md.
TEST(Service, SameJobAndSeedGiveTheSameOutcome) {
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const v1::CompressionJob first = Create(service, SmallJob());
  const v1::CompressionJob second = Create(service, SmallJob());
  FollowJob(service, first.name(), absl::Minutes(4));
  FollowJob(service, second.name(), absl::Minutes(4));
  EXPECT_EQ(Outcome(service, first.name()), Outcome(service, second.name()));
}

// Claim 5.
TEST(Service, TwoWorkersRunTrialsOfOneJobAtTheSameTime) {
  ServiceUnderTest service(2);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  v1::CompressionJob job = SmallJob();
  job.mutable_spec()->mutable_search()->set_parallelism(2);
  const v1::CompressionJob created = Create(service, job);
  FollowJob(service, created.name(), absl::Minutes(4));
  ASSERT_EQ(Get(service, created.name()).state(), v1::CompressionJob::SUCCEEDED);
  using google::protobuf::util::TimeUtil;
  std::set<std::string> workers;
  bool overlap = false;
  const std::vector<v1::Trial> trials = Trials(service, created.name());
  for (const v1::Trial& a : trials) {
    workers.insert(a.worker());
    for (const v1::Trial& b : trials) {
      overlap |= a.worker() != b.worker() &&
                 TimeUtil::TimestampToNanoseconds(a.start_time()) <=
                     TimeUtil::TimestampToNanoseconds(b.start_time()) &&
                 TimeUtil::TimestampToNanoseconds(b.start_time()) <
                     TimeUtil::TimestampToNanoseconds(a.end_time());
    }
  }
  EXPECT_EQ(workers.size(), 2u);
  EXPECT_TRUE(overlap) << "no two trials ran at the same time";
}

// Claim 6.
TEST(Service, CancellingLeavesNoEngineWithinTwoSeconds) {
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  v1::CompressionJob job = SmallJob();
  // Long enough to be caught in the middle of one task. Between two tasks an engine is idle and
  // stays: that is why the fine-tuning itself, not the job's stage, is waited for.
  job.mutable_spec()->mutable_fine_tune()->set_steps(20000);
  const v1::CompressionJob created = Create(service, job);
  bool cancelled = false;
  FollowJob(service, created.name(), absl::Minutes(4), [&](const v1::JobEvent& event) {
    if (cancelled || event.log().text().find("Fine-tuning is ") == std::string::npos) return;
    cancelled = true;
    ASSERT_FALSE(service.Engines().empty());
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_name(created.name());
    v1::CompressionJob answer;
    const absl::Time asked = absl::Now();
    ASSERT_TRUE(service.jobs().CancelJob(&context, request, &answer).ok());
    EXPECT_TRUE(
        ServiceUnderTest::WaitUntil(absl::Seconds(2), [&] { return service.Engines().empty(); }));
    printf("engine gone %.0f ms after CancelJob was called\n",
           absl::ToDoubleMilliseconds(absl::Now() - asked));
  });
  EXPECT_TRUE(cancelled);
  EXPECT_EQ(Get(service, created.name()).state(), v1::CompressionJob::CANCELLED);
}

// Paused in the middle of fine-tuning: the engine is gone, no attempt is used up, and what comes
// after is what would have come.
TEST(Service, APauseFreesTheEngineAndChangesNothingAboutTheResult) {
  v1::CompressionJob job = JobWithLongFineTuning();
  job.mutable_spec()->mutable_limits()->set_max_attempts(1);
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const std::string undisturbed = Create(service, job).name();
  FollowJob(service, undisturbed, absl::Minutes(4));

  const std::string name = Create(service, job).name();
  bool paused = false, resumed = false;
  std::vector<std::string> lines;
  FollowJob(service, name, absl::Minutes(4), [&](const v1::JobEvent& event) {
    if (event.has_log()) lines.push_back(event.log().text());
    if (!paused && event.has_log() &&
        lines.back().find("Fine-tuning step 40 of 60") != std::string::npos) {
      paused = true;
      grpc::ClientContext context;
      v1::PauseJobRequest request;
      request.set_name(name);
      v1::CompressionJob answer;
      ASSERT_TRUE(service.jobs().PauseJob(&context, request, &answer).ok());
      EXPECT_EQ(answer.state(), v1::CompressionJob::PAUSING);
      EXPECT_TRUE(ServiceUnderTest::WaitUntil(absl::Seconds(5), [&] {
        return Get(service, name).state() == v1::CompressionJob::PAUSED;
      }));
      EXPECT_TRUE(service.Engines().empty()) << "the device is not free";
    }
    if (event.state_changed().state() == v1::CompressionJob::PAUSED) {
      resumed = true;
      grpc::ClientContext context;
      v1::ResumeJobRequest request;
      request.set_name(name);
      v1::CompressionJob answer;
      ASSERT_TRUE(service.jobs().ResumeJob(&context, request, &answer).ok());
      EXPECT_EQ(answer.state(), v1::CompressionJob::RUNNING);
    }
  });
  ASSERT_TRUE(paused && resumed);
  const v1::CompressionJob done = Get(service, name);
  EXPECT_EQ(done.state(), v1::CompressionJob::SUCCEEDED) << done.error().ShortDebugString();
  EXPECT_EQ(done.retry_count(), 0);
  EXPECT_EQ(Outcome(service, name), Outcome(service, undisturbed));
  EXPECT_TRUE(std::any_of(lines.begin(), lines.end(), [](const std::string& line) {
    return line.find("Fine-tuning goes on after step ") != std::string::npos;
  }));
}

// What docs/operations.md says of SQLite: `sqlite3 jobs.sqlite ".backup copy"`, then the artifacts.
void BackUp(const fs::path& data, const fs::path& copy) {
  fs::create_directories(copy / "store");
  sqlite3 *from = nullptr, *to = nullptr;
  ASSERT_EQ(sqlite3_open((data / "store/jobs.sqlite").c_str(), &from), SQLITE_OK);
  ASSERT_EQ(sqlite3_open((copy / "store/jobs.sqlite").c_str(), &to), SQLITE_OK);
  sqlite3_backup* const backup = sqlite3_backup_init(to, "main", from, "main");
  ASSERT_EQ(sqlite3_backup_step(backup, -1), SQLITE_DONE);
  ASSERT_EQ(sqlite3_backup_finish(backup), SQLITE_OK);
  sqlite3_close(from);
  sqlite3_close(to);
  for (const auto& entry : fs::directory_iterator(data / "artifacts")) {
    const std::string name = entry.path().filename().string();
    if (name == "incoming" || name == "lock") continue;
    fs::copy(entry.path(), copy / "artifacts" / name,
             fs::copy_options::recursive | fs::copy_options::skip_existing);
  }
}

// Taken in the middle of fine-tuning: the finished job is there with its files, and the one that
// ran goes on to the result that it has where nothing happened.
TEST(Service, ABackupOfARunningServiceIsAServiceAgain) {
  ServiceUnderTest service(1), restored(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const std::string finished = Create(service, SmallJob()).name();
  FollowJob(service, finished, absl::Minutes(4));
  const std::string running = Create(service, JobWithLongFineTuning()).name();
  bool copied = false;
  FollowJob(service, running, absl::Minutes(4), [&](const v1::JobEvent& event) {
    if (copied || event.log().text().find("Fine-tuning is ") == std::string::npos) return;
    copied = true;
    fs::create_directories(restored.folder() / "data/artifacts");
    ASSERT_NO_FATAL_FAILURE(BackUp(service.folder() / "data", restored.folder() / "data"));
  });
  ASSERT_TRUE(copied);

  ASSERT_NO_FATAL_FAILURE(restored.Start());
  EXPECT_EQ(Get(restored, finished).SerializeAsString(),
            Get(service, finished).SerializeAsString());
  EXPECT_EQ(Outcome(restored, finished), Outcome(service, finished));
  FollowJob(restored, running, absl::Minutes(4));
  EXPECT_EQ(Get(restored, running).state(), v1::CompressionJob::SUCCEEDED);
  EXPECT_EQ(Outcome(restored, running), Outcome(service, running));
  for (const std::string& name : {finished, running}) {
    int files = 0;
    for (const v1::Artifact& artifact : Artifacts(restored, name)) {
      EXPECT_EQ(Sha256Hex(Download(restored, artifact.name())), artifact.sha256());
      ++files;
    }
    EXPECT_GT(files, 5) << name;
  }
}

TEST(Service, BadFieldsAreRefusedTogetherBeforeAnyWork) {
  ServiceUnderTest service(0);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  v1::CompressionJob job = SmallJob();
  job.mutable_spec()->mutable_pruning()->set_ratio(1.5);
  job.mutable_spec()->mutable_search()->add_candidate_bits(9);
  job.mutable_spec()->mutable_search()->clear_budget();
  grpc::ClientContext context;
  v1::CreateJobRequest request;
  *request.mutable_job() = job;
  v1::CompressionJob created;
  const absl::Status status = FromGrpcStatus(service.jobs().CreateJob(&context, request, &created));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldViolations(status).size(), 3u) << status;
}

TEST(Service, AModelThatIsNotThereFailsTheJobAndTheServerGoesOn) {
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  v1::CompressionJob job = SmallJob();
  job.mutable_spec()->mutable_model()->set_uri("file:///nonexistent/model");
  const v1::CompressionJob created = Create(service, job);
  FollowJob(service, created.name(), absl::Minutes(1));
  const v1::CompressionJob failed = Get(service, created.name());
  EXPECT_EQ(failed.state(), v1::CompressionJob::FAILED);
  EXPECT_NE(failed.error().message().find("/nonexistent/model"), std::string::npos)
      << failed.error().message();
  EXPECT_EQ(failed.retry_count(), 0) << "bad input is never tried again";
}

}  // namespace
}  // namespace qpruner
