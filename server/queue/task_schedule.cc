#include "server/queue/task_schedule.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "proto/task_uris.h"
#include "server/queue/job_change.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;

// How far affinity looks into a project's queue.
constexpr int kAffinityWindow = 64;

// Since when the task could have been leased.
absl::Time WaitingSince(const TaskRecord& task) {
  return std::max(FromTimestamp(task.create_time()), FromTimestamp(task.not_before()));
}

class Schedule {
 public:
  Schedule(absl::Span<const WaitingWorker> workers, absl::Span<const StoreReader::TaskQueue> queues,
           absl::Time now, absl::Duration affinity_patience, FairShares& shares)
      : workers_(workers), now_(now), patience_(affinity_patience), shares_(shares) {
    for (size_t i = 0; i < workers.size(); ++i) {
      free_.push_back(i);
      if (!workers[i].prepared_job.empty()) holders_[workers[i].prepared_job].push_back(i);
    }
    for (const StoreReader::TaskQueue& queue : queues) {
      std::vector<const TaskRecord*>& tasks = projects_[queue.project];
      for (const TaskRecord& task : queue.tasks) {
        tasks.push_back(&task);
        std::vector<std::string> uris = UrisReadByWorker(task.spec());
        if (!uris.empty()) uris_.emplace(&task, std::move(uris));
        ++waiting_of_job_[task.job()];
      }
    }
    // Each queue is in this order already; now all of a project are.
    for (auto& [project, tasks] : projects_) {
      std::stable_sort(tasks.begin(), tasks.end(), [](const TaskRecord* a, const TaskRecord* b) {
        return std::tuple(-a->priority(), FromTimestamp(a->create_time())) <
               std::tuple(-b->priority(), FromTimestamp(b->create_time()));
      });
    }
  }

  std::vector<TaskAssignment> Run() {
    std::vector<TaskAssignment> assignments;
    while (!free_.empty()) {
      const std::optional<TaskAssignment> next = NextProject();
      if (!next) break;
      assignments.push_back(*next);
      std::erase(free_, next->worker);
      std::erase(holders_[workers_[next->worker].prepared_job], next->worker);
      --waiting_of_job_[next->task->job()];
    }
    return assignments;
  }

 private:
  bool Fits(const WaitingWorker& worker, const TaskRecord& task) const {
    if (task.spec().spec().limits().min_device_memory_bytes() > worker.device_memory_bytes) {
      return false;
    }
    const auto uris = uris_.find(&task);
    return uris == uris_.end() || worker.readable_uris == nullptr ||
           std::all_of(uris->second.begin(), uris->second.end(), [&](const std::string& uri) {
             return IsBelowAnyUri(uri, *worker.readable_uris);
           });
  }

  std::optional<TaskAssignment> NextProject() {
    std::vector<std::pair<double, std::string>> order;
    for (const auto& [project, tasks] : projects_) {
      if (!tasks.empty() && !shares_.IsFull(project)) {
        order.emplace_back(shares_.Position(project), project);
      }
    }
    std::sort(order.begin(), order.end());
    for (const auto& [position, project] : order) {
      std::vector<const TaskRecord*>& tasks = projects_[project];
      const std::optional<TaskAssignment> next = NextOf(tasks);
      if (!next) {
        // Nobody who waits can run any of them.
        tasks.clear();
        continue;
      }
      std::erase(tasks, next->task);
      shares_.Grant(project);
      return next;
    }
    return std::nullopt;
  }

  // The first task that a free worker fits, or one that goes before it for its worker's sake.
  std::optional<TaskAssignment> NextOf(const std::vector<const TaskRecord*>& tasks) const {
    for (size_t i = 0; i < tasks.size(); ++i) {
      const std::optional<size_t> worker = BestWorker(*tasks[i]);
      if (!worker) continue;
      const TaskAssignment first{*worker, tasks[i]};
      if (HolderOf(*tasks[i]) || now_ - WaitingSince(*tasks[i]) >= patience_) return first;
      const size_t end = std::min(tasks.size(), i + kAffinityWindow);
      for (size_t j = i + 1; j < end && tasks[j]->priority() == tasks[i]->priority(); ++j) {
        if (const auto holder = HolderOf(*tasks[j])) return TaskAssignment{*holder, tasks[j]};
      }
      return first;
    }
    return std::nullopt;
  }

  // A free worker that holds the task's job and fits.
  std::optional<size_t> HolderOf(const TaskRecord& task) const {
    const auto holders = holders_.find(task.job());
    if (holders == holders_.end()) return std::nullopt;
    for (const size_t worker : holders->second) {
      if (Fits(workers_[worker], task)) return worker;
    }
    return std::nullopt;
  }

  // One that holds the job, else one that no other waiting task wants, else who has waited longest.
  std::optional<size_t> BestWorker(const TaskRecord& task) const {
    if (const auto holder = HolderOf(task)) return holder;
    std::optional<size_t> wanted_elsewhere;
    for (const size_t worker : free_) {
      if (!Fits(workers_[worker], task)) continue;
      const auto wanted = waiting_of_job_.find(workers_[worker].prepared_job);
      if (wanted == waiting_of_job_.end() || wanted->second == 0) return worker;
      if (!wanted_elsewhere) wanted_elsewhere = worker;
    }
    return wanted_elsewhere;
  }

  const absl::Span<const WaitingWorker> workers_;
  const absl::Time now_;
  const absl::Duration patience_;
  FairShares& shares_;
  std::vector<size_t> free_;
  std::map<std::string, std::vector<size_t>> holders_;  // Free ones, by the job they hold.
  std::map<std::string, std::vector<const TaskRecord*>> projects_;
  std::map<std::string, int> waiting_of_job_;
  // Of tasks that read something by their worker's ways.
  std::map<const TaskRecord*, std::vector<std::string>> uris_;
};

}  // namespace

std::vector<TaskAssignment> ScheduleTasks(absl::Span<const WaitingWorker> workers,
                                          absl::Span<const StoreReader::TaskQueue> queues,
                                          absl::Time now, absl::Duration affinity_patience,
                                          FairShares& shares) {
  return Schedule(workers, queues, now, affinity_patience, shares).Run();
}

}  // namespace qpruner::server
