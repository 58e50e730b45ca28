// The life of a job, as data.
#ifndef QPRUNER_SERVER_QUEUE_JOB_STATES_H_
#define QPRUNER_SERVER_QUEUE_JOB_STATES_H_

#include "absl/strings/string_view.h"
#include "qpruner/internal/v1/record.pb.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner::server {

struct JobTransition {
  v1::CompressionJob::State from;
  v1::CompressionJob::State to;
};

// Every change of state that there is. The queue is the only one to make them.
inline constexpr JobTransition kJobTransitions[] = {
    {v1::CompressionJob::PENDING, v1::CompressionJob::RUNNING},       // First lease.
    {v1::CompressionJob::PENDING, v1::CompressionJob::CANCELLED},     // Nothing to stop.
    {v1::CompressionJob::PENDING, v1::CompressionJob::FAILED},        // It waited too long.
    {v1::CompressionJob::RUNNING, v1::CompressionJob::SUCCEEDED},     // FINALIZE is done.
    {v1::CompressionJob::RUNNING, v1::CompressionJob::FAILED},        // A task gave up; a limit.
    {v1::CompressionJob::RUNNING, v1::CompressionJob::CANCELLING},    // Leases must end first.
    {v1::CompressionJob::CANCELLING, v1::CompressionJob::CANCELLED},  // The last lease ended.
    {v1::CompressionJob::PENDING, v1::CompressionJob::PAUSED},        // Nothing to stop.
    {v1::CompressionJob::RUNNING, v1::CompressionJob::PAUSING},       // Leases must end first.
    {v1::CompressionJob::PAUSING, v1::CompressionJob::PAUSED},        // The last lease ended.
    {v1::CompressionJob::PAUSING, v1::CompressionJob::RUNNING},       // Resumed before that.
    {v1::CompressionJob::PAUSING, v1::CompressionJob::FAILED},        // A task gave up.
    {v1::CompressionJob::PAUSING, v1::CompressionJob::CANCELLING},    // Leases must end first.
    {v1::CompressionJob::PAUSED, v1::CompressionJob::PENDING},        // It had not started.
    {v1::CompressionJob::PAUSED, v1::CompressionJob::RUNNING},        // It had.
    {v1::CompressionJob::PAUSED, v1::CompressionJob::CANCELLED},      // Nothing to stop.
};

constexpr bool CanTransition(v1::CompressionJob::State from, v1::CompressionJob::State to) {
  for (const JobTransition& transition : kJobTransitions) {
    if (transition.from == from && transition.to == to) return true;
  }
  return false;
}

// No transition leads out of it.
constexpr bool IsFinal(v1::CompressionJob::State state) {
  return state == v1::CompressionJob::SUCCEEDED || state == v1::CompressionJob::FAILED ||
         state == v1::CompressionJob::CANCELLED;
}

// The trial will not change again.
constexpr bool IsFinal(v1::Trial::State state) {
  return state != v1::Trial::QUEUED && state != v1::Trial::RUNNING;
}

// The task may still run.
constexpr bool IsOpen(internal::v1::TaskRecord::State state) {
  return state == internal::v1::TaskRecord::QUEUED || state == internal::v1::TaskRecord::LEASED ||
         state == internal::v1::TaskRecord::HELD;
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_STATES_H_
