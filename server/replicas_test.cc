// Two real server processes on one PostgreSQL, with workers that are scripts.
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/child_process.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/queue/job_states.h"
#include "server/testing/postgres_cluster.h"
#include "server/testing/scripted_job.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskRequest;
using internal::v1::AcquireTaskResponse;
using internal::v1::WorkerService;

void SetDeadline(grpc::ClientContext& context, int seconds = 30) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
}

// A server process and the way to it.
class Replica {
 public:
  Replica(const std::string& folder, const std::string& name, const std::string& url)
      : address_(absl::StrCat("unix:", folder, "/", name)),
        log_(absl::StrCat(folder, "/", name, ".log")) {
    const char* bin = getenv("QPRUNER_BIN_DIR");
    auto process = ChildProcess::Spawn(
        {.argv = {absl::StrCat(bin != nullptr ? bin : "build/release/bin", "/qpruner-server"),
                  "--listen", address_, "--data-dir", absl::StrCat(folder, "/data-", name),
                  "--artifacts-dir", folder + "/artifacts", "--store", "postgres", "--postgres-url",
                  url, "--metrics-listen", "off"},
         .parent_death_signal = SIGKILL,
         .output_path = log_});
    EXPECT_TRUE(process.ok()) << process.status();
    if (process.ok()) process_ = *std::move(process);
    channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
    jobs_ = v1::JobService::NewStub(channel_);
    workers_ = WorkerService::NewStub(channel_);
  }
  // False at once if the process has ended.
  bool AwaitStarted() {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (absl::Now() < deadline && !process_->Poll()) {
      if (channel_->WaitForConnected(std::chrono::system_clock::now() +
                                     std::chrono::milliseconds(200))) {
        return true;
      }
    }
    return false;
  }
  void Kill() { process_->Kill(); }
  std::string log() const {
    std::ostringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
  }
  v1::JobService::Stub& jobs() { return *jobs_; }
  WorkerService::Stub& workers() { return *workers_; }

 private:
  const std::string address_;
  const std::string log_;
  std::unique_ptr<ChildProcess> process_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<WorkerService::Stub> workers_;
};

// Works until it is stopped. Prefers one server; while that is away it goes to the other, as a
// worker behind a load balancer does.
class ScriptedWorker {
 public:
  ScriptedWorker(std::string name, std::vector<Replica*> servers)
      : name_(std::move(name)), servers_(std::move(servers)), thread_([this] { Work(); }) {}
  ~ScriptedWorker() {
    stop_ = true;
    thread_.join();
  }

 private:
  // Calls until a server answers with something else than UNAVAILABLE.
  absl::Status Call(
      const std::function<grpc::Status(WorkerService::Stub&, grpc::ClientContext&)>& f) {
    absl::Status status = absl::UnavailableError("not called");
    while (!stop_) {
      grpc::ClientContext context;
      SetDeadline(context);
      status = FromGrpcStatus(f(servers_[current_]->workers(), context));
      if (!absl::IsUnavailable(status)) return status;
      current_ = (current_ + 1) % servers_.size();
    }
    return status;
  }
  void Work() {
    while (!stop_) {
      AcquireTaskRequest request;
      request.set_worker(name_);
      request.set_incarnation("a");
      request.mutable_wait_time()->set_seconds(1);
      AcquireTaskResponse held;
      const absl::Status status = Call([&](auto& stub, auto& context) {
        held.Clear();
        return stub.AcquireTask(&context, request, &held);
      });
      if (absl::IsFailedPrecondition(status)) {
        internal::v1::RegisterWorkerRequest hello;
        hello.set_worker(name_);
        hello.set_incarnation("a");
        Call([&](auto& stub, auto& context) {
          internal::v1::RegisterWorkerResponse response;
          return stub.RegisterWorker(&context, hello, &response);
        }).IgnoreError();
      }
      if (status.ok() && held.has_lease()) Complete(held);
    }
  }
  void Complete(const AcquireTaskResponse& held) {
    for (const std::string& path : OutputsOf(held.task())) {
      Call([&](auto& stub, auto& context) {
        google::protobuf::Empty response;
        auto writer = stub.UploadArtifact(&context, &response);
        internal::v1::UploadArtifactRequest chunk;
        *chunk.mutable_lease() = held.lease();
        *chunk.mutable_ref() = ArtifactOf(path, ContentOf(path));
        chunk.set_data(ContentOf(path));
        writer->Write(chunk);
        writer->WritesDone();
        return writer->Finish();
      }).IgnoreError();
    }
    internal::v1::CompleteTaskRequest done;
    *done.mutable_lease() = held.lease();
    *done.mutable_result() = ScriptedResult(held.task());
    const absl::Status status = Call([&](auto& stub, auto& context) {
      google::protobuf::Empty response;
      return stub.CompleteTask(&context, done, &response);
    });
    EXPECT_TRUE(status.ok() || stop_) << held.lease().task() << ": " << status;
  }

  const std::string name_;
  const std::vector<Replica*> servers_;
  size_t current_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

class ReplicasTest : public testing::Test {
 protected:
  void SetUp() override {
    if (PostgresCluster::Shared() == nullptr) GTEST_SKIP() << "PostgreSQL cannot be run here";
    const std::string url = PostgresCluster::Shared()->NewDatabase();
    // Together, on an empty database.
    a_ = std::make_unique<Replica>(folder_.path(), "a", url);
    b_ = std::make_unique<Replica>(folder_.path(), "b", url);
    ASSERT_TRUE(a_->AwaitStarted()) << a_->log();
    ASSERT_TRUE(b_->AwaitStarted()) << b_->log();
  }
  void TearDown() override {
    if (!HasFailure() || !a_) return;
    for (Replica* replica : {a_.get(), b_.get()}) {
      const std::string log = replica->log();
      printf("---- server log\n%s\n",
             log.substr(log.size() - std::min<size_t>(log.size(), 4000)).c_str());
    }
  }
  static std::string Create(Replica& server) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::CompressionJob job;
    const grpc::Status status = server.jobs().CreateJob(&context, ScriptedRequest(), &job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job.name();
  }
  // Watches the job to its end, over what may come between; events must follow each other.
  static void Follow(Replica& server, const std::string& name,
                     const std::function<void(const v1::JobEvent&)>& on_event = {}) {
    int64_t last = 0;
    bool finished = false;
    for (int tries = 0; !finished && tries < 100; ++tries) {
      grpc::ClientContext context;
      SetDeadline(context, 60);
      v1::WatchJobRequest request;
      request.set_name(name);
      request.set_after_sequence(last);
      const auto stream = server.jobs().WatchJob(&context, request);
      v1::JobEvent event;
      while (stream->Read(&event)) {
        ASSERT_EQ(event.sequence(), last + 1);
        last = event.sequence();
        if (event.has_state_changed()) finished = IsFinal(event.state_changed().state());
        if (on_event) on_event(event);
      }
      const grpc::Status status = stream->Finish();
      ASSERT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE)
          << status.error_message();
    }
    EXPECT_TRUE(finished);
  }
  static std::string Outcome(Replica& server, const std::string& name) {
    v1::CompressionJob job;
    {
      grpc::ClientContext context;
      SetDeadline(context);
      v1::GetJobRequest request;
      request.set_name(name);
      EXPECT_TRUE(server.jobs().GetJob(&context, request, &job).ok());
    }
    EXPECT_EQ(job.state(), v1::CompressionJob::SUCCEEDED) << job.error().message();
    EXPECT_EQ(job.retry_count(), 0);
    for (auto& row : *job.mutable_report()->mutable_rows()) row.clear_trial();
    job.mutable_report()->clear_chosen_trial();
    std::string text = job.report().DebugString();
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListTrialsRequest request;
    v1::ListTrialsResponse response;
    request.set_parent(name);
    EXPECT_TRUE(server.jobs().ListTrials(&context, request, &response).ok());
    for (v1::Trial& trial : *response.mutable_trials()) {
      EXPECT_EQ(trial.attempt_count(), 1);
      trial.clear_name();
      trial.clear_worker();
      trial.clear_start_time();
      trial.clear_end_time();
      absl::StrAppend(&text, trial.ShortDebugString(), "\n");
    }
    return text;
  }

  TempFolder folder_;
  std::unique_ptr<Replica> a_, b_;
};

// The program's own set-up of its log, which tests of the library bring themselves.
TEST_F(ReplicasTest, WhatAWorkerSaysForgesNoLineOfTheProgramsLog) {
  internal::v1::RegisterWorkerRequest request;
  request.set_worker("w1");
  request.set_incarnation("a");
  request.set_device("cpu\ninfo {\"audit\":\"forged\"}");
  internal::v1::RegisterWorkerResponse response;
  grpc::ClientContext context;
  SetDeadline(context);
  const grpc::Status status = a_->workers().RegisterWorker(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(a_->log(), testing::HasSubstr("device cpu\\ninfo {\"audit\":\"forged\"}\n"));
}

TEST_F(ReplicasTest, AJobOutlivesTheServerThatTookIt) {
  ScriptedWorker w1("w1", {a_.get(), b_.get()});
  ScriptedWorker w2("w2", {b_.get(), a_.get()});
  const std::string undisturbed = Create(*b_);
  Follow(*a_, undisturbed);

  const std::string name = Create(*a_);
  bool killed = false;
  Follow(*b_, name, [&](const v1::JobEvent& event) {
    if (killed || !event.has_trial_updated() || event.trial_updated().index() < 3) return;
    killed = true;
    a_->Kill();
  });
  EXPECT_TRUE(killed);
  EXPECT_EQ(Outcome(*b_, name), Outcome(*b_, undisturbed));
}

TEST_F(ReplicasTest, ARestartOfTheDatabaseLosesNoJob) {
  ScriptedWorker w1("w1", {a_.get(), b_.get()});
  ScriptedWorker w2("w2", {b_.get(), a_.get()});
  const std::string undisturbed = Create(*b_);
  Follow(*a_, undisturbed);

  const std::string name = Create(*a_), other = Create(*b_);
  bool restarted = false;
  Follow(*b_, name, [&](const v1::JobEvent& event) {
    if (restarted || !event.has_trial_updated() || event.trial_updated().index() < 3) return;
    restarted = true;
    ASSERT_TRUE(PostgresCluster::Shared()->Restart().ok());
  });
  Follow(*a_, other);
  EXPECT_TRUE(restarted);
  EXPECT_EQ(Outcome(*a_, name), Outcome(*a_, undisturbed));
  EXPECT_EQ(Outcome(*b_, other), Outcome(*b_, undisturbed));
}

// A server also looks by itself, every 5 s. Five that all come within this by looking alone are a
// matter of 1 in 400.
constexpr absl::Duration kAtOnce = absl::Milliseconds(1500);

TEST_F(ReplicasTest, AWorkerThatWaitsAtOneServerGetsAJobOfTheOtherAtOnce) {
  for (int i = 0; i < 5; ++i) {
    const std::string worker = absl::StrCat("w", i);
    internal::v1::RegisterWorkerRequest hello;
    hello.set_worker(worker);
    hello.set_incarnation("a");
    internal::v1::RegisterWorkerResponse registered;
    grpc::ClientContext registering;
    SetDeadline(registering);
    ASSERT_TRUE(a_->workers().RegisterWorker(&registering, hello, &registered).ok());
    absl::Time held_at;
    std::thread poll([&] {
      AcquireTaskRequest request;
      request.set_worker(worker);
      request.set_incarnation("a");
      request.mutable_wait_time()->set_seconds(20);
      AcquireTaskResponse held;
      grpc::ClientContext context;
      SetDeadline(context);
      EXPECT_TRUE(a_->workers().AcquireTask(&context, request, &held).ok());
      EXPECT_TRUE(held.has_lease());
      held_at = absl::Now();
    });
    const std::string job = Create(*b_);
    const absl::Time created = absl::Now();
    poll.join();
    EXPECT_LT(held_at - created, kAtOnce) << job;
  }
}

TEST_F(ReplicasTest, AWatcherAtOneServerHearsOfTheOtherAtOnce) {
  for (int i = 0; i < 5; ++i) {
    const std::string name = Create(*b_);
    grpc::ClientContext watching;
    SetDeadline(watching);
    v1::WatchJobRequest watch;
    watch.set_name(name);
    const auto stream = a_->jobs().WatchJob(&watching, watch);
    v1::JobEvent event;
    ASSERT_TRUE(stream->Read(&event));
    grpc::ClientContext context;
    SetDeadline(context);
    v1::CancelJobRequest cancel;
    cancel.set_name(name);
    v1::CompressionJob job;
    ASSERT_TRUE(b_->jobs().CancelJob(&context, cancel, &job).ok());
    const absl::Time cancelled = absl::Now();
    bool told = false;
    while (!told && stream->Read(&event)) {
      told = event.has_state_changed() && IsFinal(event.state_changed().state());
    }
    EXPECT_TRUE(told);
    EXPECT_LT(absl::Now() - cancelled, kAtOnce);
  }
}

TEST_F(ReplicasTest, AFileThatOneServerTookTheOtherSends) {
  const std::string name = Create(*a_);
  {
    ScriptedWorker worker("w1", {a_.get()});
    Follow(*b_, name);
  }
  grpc::ClientContext context;
  SetDeadline(context);
  v1::DownloadArtifactRequest request;
  request.set_name(name + "/artifacts/model/model.safetensors");
  auto stream = b_->jobs().DownloadArtifact(&context, request);
  std::string content;
  v1::DownloadArtifactResponse chunk;
  while (stream->Read(&chunk)) content += chunk.data();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(content, ContentOf("model/model.safetensors"));
}

}  // namespace
}  // namespace qpruner::server
