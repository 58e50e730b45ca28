#include "server/queue/job_queue.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status_macros.h"

namespace qpruner::server {
namespace {

// Upper bound of a wait, so that a wall clock that jumps cannot delay a retry for long.
constexpr absl::Duration kLongestWait = absl::Seconds(5);
// How long a job may wait that a server left between a result and its next step, or a watcher whose
// server was not told.
constexpr absl::Duration kLookInterval = absl::Seconds(5);
constexpr absl::Duration kForgetProgressAfter = absl::Hours(1);

}  // namespace

// Hears what other servers commit to a shared store.
class JobQueue::OtherServers final : public StoreListener {
 public:
  explicit OtherServers(JobQueue& queue) : queue_(queue) { queue_.store_.SetListener(this); }
  ~OtherServers() override { queue_.store_.SetListener(nullptr); }

  void OnJobChanged(const std::string& job) override {
    queue_.watches_.Notify(job);
    // There may be a task for a worker that waits here.
    queue_.work_.Wake();
  }
  void OnChangesMissed() override {
    queue_.watches_.NotifyAll();
    queue_.leasing_.SyncSoon();
    queue_.work_.Wake();
  }

 private:
  JobQueue& queue_;
};

JobQueue::~JobQueue() = default;

JobQueue::JobQueue(JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
                   IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches,
                   QueueObserver& observer, absl::Duration limit_clock_offset)
    : options_(options),
      store_(store),
      clock_(clock),
      limit_clock_(clock, limit_clock_offset),
      watches_(watches),
      references_(store, artifacts, observer),
      progress_(options.progress_interval),
      quotas_(options.projects, store, clock),
      changes_(store, clock, limit_clock_, leases_, progress_, work_, watches, observer),
      client_calls_(store, references_, clock, ids, proposer, watches, changes_, quotas_, observer),
      leasing_(options_, store, clock, ids, leases_, workers_, work_, changes_, watches, observer),
      reports_(options_, store, artifacts, references_, clock, ids, leases_, workers_, progress_,
               changes_, watches),
      checkpoints_(store, artifacts, references_, clock),
      planning_(store, changes_, work_, proposer, observer),
      limits_(store, clock, limit_clock_, limit_clock_offset, changes_) {}

absl::StatusOr<std::unique_ptr<JobQueue>> JobQueue::Create(
    JobQueueOptions options, JobStore& store, ArtifactStore& artifacts, Clock& clock,
    IdGenerator& ids, const TrialProposer& proposer, WatchHub& watches, QueueObserver& observer) {
  ASSIGN_OR_RETURN(const absl::Duration offset, store.LimitClockOffset());
  std::unique_ptr<JobQueue> queue(
      new JobQueue(options, store, artifacts, clock, ids, proposer, watches, observer, offset));
  RETURN_IF_ERROR(queue->leasing_.Recover());
  queue->other_servers_ = std::make_unique<OtherServers>(*queue);
  return queue;
}

absl::StatusOr<v1::CompressionJob> JobQueue::CreateJob(const NewJob& job) {
  return client_calls_.CreateJob(job);
}
absl::StatusOr<v1::CompressionJob> JobQueue::CancelJob(const JobName& name) {
  return client_calls_.CancelJob(name);
}
absl::StatusOr<v1::CompressionJob> JobQueue::PauseJob(const JobName& name) {
  return client_calls_.PauseJob(name);
}
absl::StatusOr<v1::CompressionJob> JobQueue::ResumeJob(const JobName& name) {
  return client_calls_.ResumeJob(name);
}
absl::Status JobQueue::DeleteJob(const JobName& name) { return client_calls_.DeleteJob(name); }
absl::Status JobQueue::DropIntermediates(const JobName& name) {
  return client_calls_.DropIntermediates(name);
}

absl::Status JobQueue::RegisterWorker(const internal::v1::RegisterWorkerRequest& request) {
  return leasing_.RegisterWorker(request);
}
int64_t JobQueue::AcquireTask(const internal::v1::AcquireTaskRequest& request,
                              AcquireCallback done) {
  return leasing_.AcquireTask(request, std::move(done));
}
void JobQueue::CancelAcquire(int64_t id) { leasing_.CancelAcquire(id); }
std::vector<v1::ListCapabilitiesResponse::Worker> JobQueue::LiveWorkers() {
  return leasing_.LiveWorkers();
}
void JobQueue::StopLeasing() { leasing_.StopLeasing(); }

absl::StatusOr<internal::v1::HeartbeatResponse> JobQueue::Heartbeat(
    const internal::v1::HeartbeatRequest& request) {
  return reports_.Heartbeat(request);
}
absl::Status JobQueue::SaveCheckpoint(const internal::v1::SaveCheckpointRequest& request) {
  return checkpoints_.Save(request);
}
absl::Status JobQueue::CompleteTask(const internal::v1::CompleteTaskRequest& request) {
  return reports_.CompleteTask(request);
}
absl::StatusOr<internal::v1::TaskRecord> JobQueue::FindLeasedTask(
    const internal::v1::Lease& lease) {
  return reports_.FindLeasedTask(lease);
}

void JobQueue::LookAfterOthers() {
  const absl::Duration now = clock_.Monotonic();
  if (!store_.shared() || now < next_look_) return;
  next_look_ = now + kLookInterval;
  progress_.ForgetOlderThan(now - kForgetProgressAfter);
  std::vector<JobName> watched;
  for (const std::string& name : watches_.WatchedJobs()) {
    if (const absl::StatusOr<JobName> job = JobName::Parse(name); job.ok()) watched.push_back(*job);
  }
  std::vector<JobName> stalled;
  std::map<std::string, int64_t> sequences;
  const absl::Status status = store_.Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(stalled, reader.StalledJobs());
    ASSIGN_OR_RETURN(sequences, reader.LastEventSequences(watched));
    return absl::OkStatus();
  });
  if (!status.ok()) return;  // The next look comes.
  for (const JobName& name : stalled) work_.MarkDirty(name.ToString());
  // Only watchers of jobs that have changed since the last look, or are watched since then, read.
  for (const JobName& job : watched) {
    const std::string name = job.ToString();
    const auto newest = sequences.find(name);
    const auto before = seen_sequences_.find(name);
    const bool unchanged = newest != sequences.end() && before != seen_sequences_.end() &&
                           newest->second == before->second;
    if (!unchanged) watches_.Notify(name);
  }
  seen_sequences_ = std::move(sequences);
}

void JobQueue::ServeWorkers() {
  leasing_.ForgetSilentWorkers();
  LookAfterOthers();
  leasing_.SyncLeases();
  leasing_.ExpireLeases();
  limits_.Enforce();
  leasing_.ServePolls();
}

void JobQueue::KeepLeases() {
  ServeWorkers();
  leasing_.ExpirePolls();
}

void JobQueue::SetPolicies(const ProjectPolicies& policies) {
  quotas_.SetPolicies(policies);
  leasing_.SetPolicies(policies);
}

bool JobQueue::PlanNext() { return planning_.PlanNext(); }

void JobQueue::Tick() {
  ServeWorkers();
  planning_.RetryFailed();
  while (planning_.PlanNext()) {
  }
  leasing_.ServePolls();
  leasing_.ExpirePolls();
}

void JobQueue::Wake() {
  work_.Wake();
  work_.WakePlanning();
}

void JobQueue::WaitForWork() {
  absl::Duration wait = leasing_.TimeToNextDeadline().value_or(kLongestWait);
  if (const auto look = limits_.TimeToNext()) wait = std::min(wait, *look);
  // Not before the deadline: a rounded-down wait would spin.
  work_.Wait(std::clamp(wait, absl::Milliseconds(1), kLongestWait));
}

void JobQueue::WaitToPlan() {
  work_.WaitToPlan(planning_.any_failed() ? kStoreRetryInterval : kLongestWait);
  planning_.RetryFailed();
}

}  // namespace qpruner::server
