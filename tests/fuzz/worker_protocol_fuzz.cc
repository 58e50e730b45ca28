// Plays a hostile worker against a real queue on a real store: any messages, in any order, with a
// good lease or a made-up one. Afterwards an honest worker must bring the job to its end, its
// events must be without gaps, and deleting it must leave nothing.
//
// An input is a row of steps: a byte that says which call, two bytes of length (little-endian), and
// the message.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "google/protobuf/stubs/logging.h"
#include "server/artifacts/local_artifact_store.h"
#include "server/queue/job_queue.h"
#include "server/queue/job_states.h"
#include "server/store/sqlite_job_store.h"
#include "server/testing/scripted_job.h"
#include "tests/testing/simulated_clock.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::server {
namespace {

using internal::v1::AcquireTaskResponse;
using internal::v1::CompleteTaskRequest;

constexpr int kCalls = 8;
constexpr char kHostile[] = "hostile";
constexpr char kHonest[] = "honest";

void Check(bool condition) {
  if (!condition) std::abort();
}

// A queue for all inputs, on a store in memory; each input has a job of its own.
class Arena {
 public:
  Arena()
      : folder_("/dev/shm"),
        store_(OpenSqliteJobStore({.folder = folder_.path() + "/store"}).value()),
        artifacts_(
            OpenLocalArtifactStore({.folder = folder_.path() + "/artifacts", .clock = clock_})
                .value()),
        proposer_(MakeSearchProposer()),
        queue_(JobQueue::Create({}, *store_, *artifacts_, clock_, ids_, *proposer_, watches_,
                                observer_)
                   .value()) {}

  void Play(const uint8_t* data, size_t size) {
    auto job = queue_->CreateJob(ValidateCreateJob(ScriptedRequest(), {}).value());
    Check(job.ok());
    name_ = JobName::Parse(job->name()).value();
    held_.reset();
    Register(kHostile);
    while (size >= 3) {
      const int call = data[0] % kCalls;
      const size_t length = std::min<size_t>(data[1] | data[2] << 8, size - 3);
      Step(call, std::string(reinterpret_cast<const char*>(data + 3), length));
      data += 3 + length;
      size -= 3 + length;
    }
    FinishHonestly();
    CheckEvents();
    Check(queue_->DeleteJob(name_).ok());
  }

 private:
  void Step(int call, const std::string& bytes) {
    switch (call) {
      case 0: {
        internal::v1::RegisterWorkerRequest request;
        if (!request.ParseFromString(bytes)) return;
        // One that says it is the honest worker would be refused for its identity before.
        if (request.worker() == kHonest) request.set_worker(kHostile);
        (void)queue_->RegisterWorker(request);
        return;
      }
      case 1:
        Acquire(kHostile);
        return;
      case 2:
        Send<internal::v1::HeartbeatRequest>(
            bytes, [&](const auto& request) { (void)queue_->Heartbeat(request); });
        return;
      case 3:
        Send<CompleteTaskRequest>(
            bytes, [&](const auto& request) { (void)queue_->CompleteTask(request); });
        return;
      case 4:
        Send<internal::v1::SaveCheckpointRequest>(
            bytes, [&](const auto& request) { (void)queue_->SaveCheckpoint(request); });
        return;
      case 5:
        clock_.Advance(absl::Seconds(bytes.empty() ? 1 : static_cast<uint8_t>(bytes[0])));
        queue_->Tick();
        return;
      case 6:
        AnswerNearlyRight(bytes);
        return;
      default: {
        // With a lease of its own making.
        CompleteTaskRequest request;
        if (request.ParseFromString(bytes)) (void)queue_->CompleteTask(request);
      }
    }
  }

  template <typename Request, typename Call>
  void Send(const std::string& bytes, const Call& call) {
    Request request;
    if (!request.ParseFromString(bytes)) return;
    if (held_) *request.mutable_lease() = held_->lease();
    call(request);
  }

  // An honest answer with `bytes` merged into it.
  void AnswerNearlyRight(const std::string& bytes) {
    if (!held_) return;
    CompleteTaskRequest request = HonestAnswer(*held_);
    (void)request.mutable_result()->MergeFromString(bytes);
    (void)queue_->CompleteTask(request);
  }

  void Register(const std::string& worker) {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker(worker);
    request.set_incarnation("1");
    Check(queue_->RegisterWorker(request).ok());
  }

  // Leaves what is leased in held_.
  void Acquire(const std::string& worker) {
    internal::v1::AcquireTaskRequest request;
    request.set_worker(worker);
    request.set_incarnation("1");
    std::optional<absl::StatusOr<AcquireTaskResponse>> answer;
    queue_->AcquireTask(request, [&](auto response) { answer = std::move(response); });
    if (!answer) queue_->Tick();
    Check(answer.has_value());  // A poll that does not wait is answered.
    if (answer->ok() && (*answer)->has_lease()) held_ = **answer;
  }

  CompleteTaskRequest HonestAnswer(const AcquireTaskResponse& held) {
    for (const std::string& path : OutputsOf(held.task())) {
      Check(StoreContent(*artifacts_, ContentOf(path)).ok());
    }
    CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_result() = ScriptedResult(held.task());
    return request;
  }

  v1::CompressionJob::State State() {
    v1::CompressionJob::State state = v1::CompressionJob::STATE_UNSPECIFIED;
    Check(store_
              ->Read([&](StoreReader& reader) {
                const auto record = reader.GetJob(name_);
                if (record.ok()) state = record->job().state();
                return record.status();
              })
              .ok());
    return state;
  }

  void FinishHonestly() {
    Register(kHonest);
    // Each step ends a lease, waits out a back-off or does a task: bounded by attempts and trials.
    for (int step = 0; !IsFinal(State()); ++step) {
      Check(step < 400);
      held_.reset();
      Acquire(kHonest);
      if (held_) {
        (void)queue_->CompleteTask(HonestAnswer(*held_));
      } else {
        clock_.Advance(absl::Seconds(20));
      }
      queue_->Tick();
    }
  }

  void CheckEvents() {
    Check(store_
              ->Read([&](StoreReader& reader) {
                const auto events = reader.ListEvents(name_, 0, 100000);
                if (!events.ok()) return events.status();
                int64_t sequence = 0;
                for (const v1::JobEvent& event : *events) Check(event.sequence() == ++sequence);
                return absl::OkStatus();
              })
              .ok());
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
  JobName name_;
  std::optional<AcquireTaskResponse> held_;
};

}  // namespace
}  // namespace qpruner::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // protobuf prints a line for each text that is not UTF-8.
  const google::protobuf::LogSilencer silence;
  static qpruner::server::Arena arena;
  arena.Play(data, size);
  return 0;
}
