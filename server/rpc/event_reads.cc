#include "server/rpc/event_reads.h"

#include "base/status_macros.h"
#include "proto/status_codec.h"
#include "server/queue/job_not_found.h"
#include "server/queue/job_states.h"

namespace qpruner::server {
namespace {

// Events read and held at a time.
constexpr int kBatchSize = 64;

}  // namespace

void EventReads::Ask(const JobName& job, int64_t after_sequence, Done done) {
  {
    absl::MutexLock lock(&mutex_);
    std::vector<Done>& asking = waiting_[{job.ToString(), after_sequence}];
    asking.push_back(std::move(done));
    if (asking.size() > 1) return;
  }
  executor_.Add([this, job, after_sequence] { Read(job, after_sequence); });
}

void EventReads::Read(const JobName& job, int64_t after_sequence) {
  std::vector<Done> asking;
  {
    // Who asks from here on needs another read: this one may miss what it was told of.
    absl::MutexLock lock(&mutex_);
    asking = std::move(waiting_.extract({job.ToString(), after_sequence}).mapped());
  }
  const auto batch = std::make_shared<const EventBatch>(reader_(job, after_sequence));
  for (const Done& done : asking) done(batch);
}

EventReads::Reader ReadStoredEvents(JobStore& store, const WatchHub& hub) {
  return [&store, &hub](const JobName& job, int64_t after_sequence) {
    const bool closed = hub.closed();
    EventBatch batch;
    batch.status = store.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const internal::v1::JobRecord record, reader.GetJob(job));
      ASSIGN_OR_RETURN(batch.events, reader.ListEvents(job, after_sequence, kBatchSize));
      const int64_t seen = batch.events.empty() ? after_sequence : batch.events.back().sequence();
      // A job's last event is that of its final state.
      batch.at_end = IsFinal(record.job().state()) && seen >= record.job().last_event_sequence();
      return absl::OkStatus();
    });
    batch.is_full = batch.events.size() == kBatchSize;
    if (absl::IsNotFound(batch.status)) batch.status = JobNotFound(job);
    // What is stored is still sent; there is no end of it only while tasks go on.
    if (batch.status.ok() && closed && !batch.at_end && !batch.is_full) {
      batch.status = WithErrorInfo(
          absl::UnavailableError("The server is stopping: watch again from the last sequence"),
          "SERVER_STOPPING");
    }
    return batch;
  };
}

}  // namespace qpruner::server
