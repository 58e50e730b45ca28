// Who has had how much of the workers: weighted fair queueing of projects by the device time that
// their tasks hold.
//
// Each project has a clock of its own, which runs by the time that its leases hold workers, divided
// by its weight; whoever's clock is furthest behind is next. A project that comes (back) starts
// where the last of those that are there stands: time in which it asked for nothing gives it no
// claim (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996). So two projects that both have
// work waiting never differ, in time by weight, by more than their longest tasks on all workers,
// and nobody waits for longer than that.
//
// In memory: a server that is started again treats all projects alike.
#ifndef QPRUNER_SERVER_QUEUE_FAIR_SHARES_H_
#define QPRUNER_SERVER_QUEUE_FAIR_SHARES_H_

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "server/queue/project_policies.h"

namespace qpruner::server {

// Not thread-safe.
class FairShares {
 public:
  explicit FairShares(ProjectPolicies policies) : policies_(std::move(policies)) {}

  // From now on; what was had before counts as it did.
  void SetPolicies(ProjectPolicies policies) { policies_ = std::move(policies); }
  // It is `now` (monotonic), and `running` workers are held by each project. They were since the
  // last call as that said.
  void Advance(absl::Duration now, const std::map<std::string, int>& running);
  // These projects have tasks that wait.
  void SetWaiting(const std::set<std::string>& projects);
  // A task of the project gets a worker.
  void Grant(const std::string& project) { ++running_[project]; }

  // The smaller, the sooner it is the project's turn. Tasks that run now count with some time
  // ahead: when many workers are free at once, they do not all go to one project.
  double Position(const std::string& project) const;
  // It has as many workers as it may.
  bool IsFull(const std::string& project) const;

 private:
  int Running(const std::string& project) const;

  ProjectPolicies policies_;
  absl::Duration now_;
  std::map<std::string, int> running_;
  // Device seconds by weight. Of projects that run or wait, and those ahead of them all.
  std::map<std::string, double> clocks_;
  std::set<std::string> waiting_;
  // Where who comes starts.
  double start_ = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_FAIR_SHARES_H_
