// The leases that this process knows of, in memory. The store decides whether a lease is current;
// this table decides when it ends, on a clock that does not jump.
//
// Where several servers share a store, a lease may be granted by one and renewed at another. Each
// of them then reads all leases from time to time (Sync): a stored renewal that is new to it is a
// sign of life *now*, on its own clock, whatever the clocks of the others or of the database say.
#ifndef QPRUNER_SERVER_QUEUE_LEASE_TABLE_H_
#define QPRUNER_SERVER_QUEUE_LEASE_TABLE_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/resource_name.h"
#include "qpruner/internal/v1/record.pb.h"
#include "server/queue/log_allowance.h"

namespace qpruner::server {

struct HeldLease {
  std::string token;
  JobName job;
  std::string task_id;
  int attempt = 0;
  std::string worker;
  std::string incarnation;
  // On the monotonic clock.
  absl::Duration deadline;
  // Progress of the attempt, 0 to 1.
  double fraction = 0;
  // What of it was last stored for those who watch the job.
  double told_fraction = 0;
  std::string told_message;
  // Since when this process knows of it, and when it last saw or made a stored renewal, which was
  // this one. On the monotonic clock.
  absl::Duration known_since;
  absl::Duration stored_at;
  int64_t renewal_count = 0;
  // What the attempt may still log.
  LogAllowance logs;
  // Another process of the worker has registered: this one ends at once.
  bool worker_replaced = false;
};

// The lease of a LEASED task, with a whole period from `now` on.
HeldLease ToHeldLease(const internal::v1::TaskRecord& task, absl::Duration now,
                      absl::Duration lease_duration);

// Thread-safe. "Take" removes what it returns. What is asked about a token, a worker or a job costs
// what that has, however many leases there are.
class LeaseTable {
 public:
  // Inserts, or replaces the lease of the same token.
  void Put(HeldLease lease);
  void Erase(const std::string& token);
  void EraseJob(const JobName& job);
  // Moves the deadline to `deadline` if that is later.
  void Renew(const std::string& token, absl::Duration deadline);
  void RenewAll(absl::Duration deadline);
  // A renewal was stored.
  void MarkStored(const std::string& token, int64_t renewal_count, absl::Duration now);
  // What the store holds, as read at `read_at`: leases of other servers come in with a whole
  // period, those renewed since the last time get one, and those that are over go.
  void Sync(const std::vector<internal::v1::TaskRecord>& leased, absl::Duration read_at,
            absl::Duration lease_duration);
  // The progress never falls and is kept within 0 and 1.
  void RaiseFraction(const std::string& token, double fraction);
  // The progress up to `fraction` was stored, with `message` unless that is empty.
  void MarkTold(const std::string& token, double fraction, const std::string& message);

  // See LogAllowance. A lease that this table does not hold has an allowance for this call alone.
  LogTurn TakeLogs(const std::string& token, int count, absl::Duration now, bool is_last);

  std::optional<HeldLease> Find(const std::string& token) const;
  // The lease that a worker's process holds; of several, the one that was put first.
  std::optional<HeldLease> FindOf(const std::string& worker, const std::string& incarnation) const;
  int CountOf(const std::string& worker) const;
  // Leases by project.
  std::map<std::string, int> CountByProject() const;
  // Sum of the fractions of the job's leases, without that of `except_token`.
  double RunningFraction(const JobName& job, const std::string& except_token) const;

  // Those whose deadline has come, earliest first.
  std::vector<HeldLease> TakeExpired(absl::Duration now);
  // Those of other processes of the worker.
  std::vector<HeldLease> TakeOfOtherProcesses(const std::string& worker,
                                              const std::string& incarnation);
  // Nothing if there are no leases.
  std::optional<absl::Duration> NextDeadline() const;

 private:
  using Leases = absl::flat_hash_map<std::string, HeldLease>;  // By token.
  // Tokens by what their leases share, a few for each key, in the order of insertion.
  using Index = absl::flat_hash_map<std::string, std::vector<std::string>>;

  void Insert(HeldLease lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  HeldLease Remove(Leases::iterator at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // In the order of TakeExpired.
  std::vector<HeldLease> Take(const std::vector<std::string>& tokens)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  Leases leases_ ABSL_GUARDED_BY(mutex_);
  Index of_worker_ ABSL_GUARDED_BY(mutex_);
  Index of_job_ ABSL_GUARDED_BY(mutex_);  // By JobName::ToString().
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_LEASE_TABLE_H_
