#include "server/queue/task_schedule.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/queue/job_change.h"
#include "server/store/stored_record.h"

namespace qpruner::server {
namespace {

using internal::v1::TaskRecord;
using testing::ElementsAre;

constexpr absl::Duration kPatience = absl::Seconds(10);
const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

TaskRecord MakeTask(const std::string& project, const std::string& job, const std::string& id,
                    absl::Time created, int priority = 0, int64_t memory = 0) {
  TaskRecord task;
  task.set_job(absl::StrCat("projects/", project, "/jobs/", job));
  task.set_task_id(id);
  task.set_priority(priority);
  *task.mutable_create_time() = ToTimestamp(created);
  task.mutable_spec()->mutable_spec()->mutable_limits()->set_min_device_memory_bytes(memory);
  return task;
}

// As a store would: one queue a project and class, each in its order.
std::vector<StoreReader::TaskQueue> Queues(std::vector<TaskRecord> tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const TaskRecord& a, const TaskRecord& b) {
    if (a.priority() != b.priority()) return a.priority() > b.priority();
    return FromTimestamp(a.create_time()) < FromTimestamp(b.create_time());
  });
  std::map<std::pair<std::string, int>, std::vector<TaskRecord>> sorted;
  for (const TaskRecord& task : tasks) {
    sorted[{JobName::Parse(task.job())->project, NeedClass(task)}].push_back(task);
  }
  std::vector<StoreReader::TaskQueue> queues;
  for (auto& [key, queue] : sorted) queues.push_back({key.first, key.second, std::move(queue)});
  return queues;
}

// "worker:task" for each assignment.
std::vector<std::string> Decide(const std::vector<WaitingWorker>& workers,
                                const std::vector<TaskRecord>& tasks,
                                absl::Time now = kStart + absl::Seconds(1),
                                FairShares shares = FairShares({})) {
  const auto queues = Queues(tasks);
  std::vector<std::string> text;
  for (const TaskAssignment& assignment : ScheduleTasks(workers, queues, now, kPatience, shares)) {
    text.push_back(absl::StrCat(assignment.worker, ":", assignment.task->task_id()));
  }
  return text;
}

TEST(ScheduleTasks, WithinAProjectPriorityThenAge) {
  const std::vector<TaskRecord> tasks = {
      MakeTask("p", "a", "young", kStart + absl::Milliseconds(2)),
      MakeTask("p", "b", "old", kStart),
      MakeTask("p", "c", "urgent", kStart + absl::Milliseconds(9), 5),
      MakeTask("p", "d", "idle", kStart, -5)};
  EXPECT_THAT(Decide({{}, {}, {}}, tasks), ElementsAre("0:urgent", "1:old", "2:young"));
}

TEST(ScheduleTasks, AWorkerGetsOnlyWhatItCanRead) {
  const auto reads = [](std::vector<std::string> uris) {
    return WaitingWorker{.readable_uris =
                             std::make_shared<const std::vector<std::string>>(std::move(uris))};
  };
  std::vector<TaskRecord> tasks;
  const auto add = [&](const std::string& id, const std::string& model) {
    tasks.push_back(
        MakeTask("p", id, id, kStart + absl::Milliseconds(static_cast<double>(tasks.size()))));
    tasks.back().mutable_spec()->mutable_prepare();
    tasks.back().mutable_spec()->mutable_spec()->mutable_model()->set_uri(model);
  };
  add("hub", "hf://org/name@main");
  add("bucket", "s3://models/llama");
  add("shipped", "builtin://stories260k");
  EXPECT_THAT(Decide({reads({"builtin://"})}, tasks), ElementsAre("0:shipped"));
  EXPECT_THAT(Decide({reads({"s3://models"}), reads({"hf://"})}, tasks),
              ElementsAre("1:hub", "0:bucket"));
  EXPECT_THAT(Decide({reads({"s3://others"}), reads({"file:///"})}, tasks),
              ElementsAre("0:shipped"));
  // A worker of an earlier version does not say.
  EXPECT_THAT(Decide({{}, {}, {}}, tasks), ElementsAre("0:hub", "1:bucket", "2:shipped"));
  // Texts count for all tasks, the model for those that read it.
  tasks.clear();
  add("trial", "hf://org/name@main");
  tasks[0].mutable_spec()->mutable_trial();
  EXPECT_THAT(Decide({reads({"builtin://"})}, tasks), ElementsAre("0:trial"));
  tasks[0].mutable_spec()->mutable_spec()->mutable_evaluation()->mutable_dataset()->set_uri(
      "file:///texts/a");
  EXPECT_THAT(Decide({reads({"hf://"})}, tasks), ElementsAre());
  EXPECT_THAT(Decide({reads({"file:///"})}, tasks), ElementsAre("0:trial"));
}

TEST(ScheduleTasks, ProjectsTakeTurnsByWeight) {
  std::vector<TaskRecord> tasks;
  for (int i = 0; i < 20; ++i) {
    tasks.push_back(MakeTask("big", "j", "big", kStart));
    tasks.push_back(MakeTask("small", "j", "small", kStart));
  }
  ProjectPolicies policies;
  policies.projects["big"].weight = 3;
  std::map<std::string, int> counts;
  for (const std::string& text :
       Decide(std::vector<WaitingWorker>(12), tasks, kStart, FairShares(policies))) {
    ++counts[text.substr(text.find(':') + 1)];
  }
  EXPECT_EQ(counts["big"], 9);
  EXPECT_EQ(counts["small"], 3);
}

TEST(ScheduleTasks, AProjectHasAtMostItsQuotaOfWorkers) {
  std::vector<TaskRecord> tasks;
  for (int i = 0; i < 5; ++i) tasks.push_back(MakeTask("p", "j", "t", kStart));
  ProjectPolicies policies;
  policies.fallback.max_running_tasks = 3;
  FairShares shares(policies);
  shares.Advance(absl::Seconds(1), {{"p", 1}});
  EXPECT_EQ(Decide(std::vector<WaitingWorker>(5), tasks, kStart, shares).size(), 2u);
}

TEST(ScheduleTasks, NobodyGetsMoreThanItsMemoryHolds) {
  constexpr int64_t kGiB = int64_t{1} << 30;
  const std::vector<TaskRecord> tasks = {
      MakeTask("p", "a", "24g-more", kStart, 0, 24 * kGiB + 1),
      MakeTask("p", "b", "24g", kStart + absl::Milliseconds(1), 0, 24 * kGiB),
      MakeTask("p", "c", "any", kStart + absl::Milliseconds(2))};
  // Of unknown memory, of 24 GiB, of 80 GiB.
  EXPECT_THAT(Decide({{0}, {24 * kGiB}, {80 * kGiB}}, tasks),
              ElementsAre("2:24g-more", "1:24g", "0:any"));
  EXPECT_THAT(Decide({{0}, {24 * kGiB}}, tasks), ElementsAre("1:24g", "0:any"));
  EXPECT_THAT(Decide({{0}, {0}}, tasks), ElementsAre("0:any"));
}

TEST(ScheduleTasks, AWorkerKeepsTheJobWhoseModelItHolds) {
  const std::vector<TaskRecord> tasks = {MakeTask("p", "a", "a-1", kStart),
                                         MakeTask("p", "b", "b-1", kStart + absl::Seconds(1)),
                                         MakeTask("p", "c", "c-1", kStart + absl::Seconds(2))};
  const std::string b = "projects/p/jobs/b", c = "projects/p/jobs/c";
  // c-1 and b-1 pass over a-1, which is young; nobody holds it, so who is left gets it.
  EXPECT_THAT(Decide({{0, c}, {}, {0, b}}, tasks, kStart + absl::Seconds(3)),
              ElementsAre("2:b-1", "0:c-1", "1:a-1"));
  // It has waited long enough. The worker without a wanted model takes it.
  EXPECT_THAT(Decide({{0, c}, {}, {0, b}}, tasks, kStart + kPatience),
              ElementsAre("1:a-1", "2:b-1", "0:c-1"));
  EXPECT_THAT(Decide({{0, c}}, tasks, kStart + kPatience), ElementsAre("0:a-1"));
  // Priority goes before.
  EXPECT_THAT(Decide({{0, c}}, {MakeTask("p", "a", "a-1", kStart, 1), tasks[2]}, kStart),
              ElementsAre("0:a-1"));
}

TEST(FairShares, WhoComesBackHasNoClaimForTheTimeItWantedNothing) {
  FairShares shares({});
  shares.SetWaiting({"steady"});
  shares.Advance(absl::Seconds(0), {{"steady", 1}});
  shares.Advance(absl::Hours(10), {{"steady", 1}});
  shares.SetWaiting({"steady", "new"});
  EXPECT_EQ(shares.Position("new") + 30, shares.Position("steady"));
  // A debt stays.
  shares.Advance(absl::Hours(10), {{"new", 4}});
  shares.Advance(absl::Hours(11), {{"steady", 1}});
  shares.SetWaiting({"steady"});
  shares.SetWaiting({"steady", "new"});
  EXPECT_GT(shares.Position("new"), shares.Position("steady"));
}

TEST(FairShares, WhoIsFirstSeenAtAWorkerOfAnotherServerStartsLikeAnyOther) {
  FairShares shares({});
  shares.SetWaiting({"steady"});
  shares.Advance(absl::Seconds(0), {{"steady", 1}});
  shares.Advance(absl::Hours(10), {{"steady", 1}});
  shares.SetWaiting({"steady"});
  shares.Advance(absl::Hours(10), {{"steady", 1}, {"elsewhere", 1}});
  shares.Advance(absl::Hours(10) + absl::Seconds(5), {{"steady", 1}, {"elsewhere", 1}});
  shares.SetWaiting({"steady", "elsewhere"});
  EXPECT_EQ(shares.Position("elsewhere"), shares.Position("steady"));
}

// ---------------------------------------------------------------------------------------------
// Simulation: projects with endless or sudden work, workers, and time.

struct SimulatedProject {
  std::string name;
  double weight = 1;
  // A task takes between half and three halves of it.
  double mean_seconds = 10;
  // It has work in this span only.
  double from = 0;
  double until = 1e9;
};

struct SimulationResult {
  std::map<std::string, double> device_seconds;
  // From its arrival, or the start of its last task, to the start of the next.
  std::map<std::string, double> longest_wait;
  int started = 0;
  int with_model_at_hand = 0;
};

// Each project keeps `jobs_each` jobs going, each of which keeps 4 tasks waiting. `count_from`:
// what is earlier is not counted.
SimulationResult Simulate(const std::vector<SimulatedProject>& projects, int worker_count,
                          double seconds, uint64_t seed, double count_from = 0, int jobs_each = 3) {
  ProjectPolicies policies;
  for (const SimulatedProject& project : projects) {
    policies.projects[project.name].weight = project.weight;
  }
  FairShares shares(policies);
  std::mt19937_64 random(seed);
  struct Worker {
    std::optional<TaskRecord> task;
    std::string project;
    double start = 0;
    double end = 0;
    std::string prepared_job;
  };
  std::vector<Worker> workers(worker_count);
  std::map<std::string, std::vector<TaskRecord>> waiting;
  std::map<std::string, double> last_start;
  SimulationResult result;
  int ids = 0;
  double now = 0;
  while (now < seconds) {
    // Who has work keeps its queue full.
    std::vector<TaskRecord> tasks;
    for (const SimulatedProject& project : projects) {
      std::vector<TaskRecord>& queue = waiting[project.name];
      if (now < project.from || now >= project.until) {
        queue.clear();
        last_start.erase(project.name);
        continue;
      }
      last_start.try_emplace(project.name, now);
      for (int job = 0; job < jobs_each; ++job) {
        const std::string name = absl::StrCat("j", job);
        const auto mine = [&](const TaskRecord& task) {
          return JobName::Parse(task.job())->job == name;
        };
        for (auto n = std::count_if(queue.begin(), queue.end(), mine); n < 4; ++n) {
          queue.push_back(
              MakeTask(project.name, name, absl::StrCat("t", ++ids), kStart + absl::Seconds(now)));
        }
      }
      tasks.insert(tasks.end(), queue.begin(), queue.end());
    }
    std::map<std::string, int> running;
    std::vector<WaitingWorker> free;
    std::vector<size_t> free_index;
    for (size_t i = 0; i < workers.size(); ++i) {
      if (workers[i].task) {
        ++running[workers[i].project];
      } else {
        free.push_back({0, workers[i].prepared_job});
        free_index.push_back(i);
      }
    }
    const auto queues = Queues(tasks);
    shares.Advance(absl::Seconds(now), running);
    std::set<std::string> names;
    for (const auto& queue : queues) names.insert(queue.project);
    shares.SetWaiting(names);
    for (const TaskAssignment& assignment :
         ScheduleTasks(free, queues, kStart + absl::Seconds(now), absl::Minutes(2), shares)) {
      Worker& worker = workers[free_index[assignment.worker]];
      worker.task = *assignment.task;
      worker.project = JobName::Parse(assignment.task->job())->project;
      const auto& project = *std::find_if(projects.begin(), projects.end(),
                                          [&](const auto& p) { return p.name == worker.project; });
      worker.start = now;
      worker.end = now + project.mean_seconds * std::uniform_real_distribution<>(0.5, 1.5)(random);
      ++result.started;
      result.with_model_at_hand += worker.prepared_job == assignment.task->job();
      worker.prepared_job = assignment.task->job();
      if (now >= count_from) {
        double& wait = result.longest_wait[worker.project];
        wait = std::max(wait, now - last_start[worker.project]);
      }
      last_start[worker.project] = now;
      std::erase_if(waiting[worker.project], [&](const TaskRecord& task) {
        return task.task_id() == assignment.task->task_id();
      });
    }
    // To the next end of a task, or arrival.
    double next = seconds;
    for (const Worker& worker : workers) {
      if (worker.task) next = std::min(next, worker.end);
    }
    for (const SimulatedProject& project : projects) {
      for (const double change : {project.from, project.until}) {
        if (change > now) next = std::min(next, change);
      }
    }
    for (Worker& worker : workers) {
      if (!worker.task) continue;
      result.device_seconds[worker.project] +=
          std::max(0.0, std::min(next, worker.end) - std::max(now, count_from));
      if (worker.end <= next) worker.task.reset();
    }
    now = next;
  }
  return result;
}

// The share of each project, of all device time.
std::map<std::string, double> SharesOf(const SimulationResult& result) {
  double sum = 0;
  for (const auto& [project, seconds] : result.device_seconds) sum += seconds;
  std::map<std::string, double> shares;
  for (const auto& [project, seconds] : result.device_seconds) shares[project] = seconds / sum;
  return shares;
}

class SimulationTest : public testing::TestWithParam<int> {};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// What a step does is the same for any number of workers, and 16 take a sanitizer minutes.
INSTANTIATE_TEST_SUITE_P(Workers, SimulationTest, testing::Values(1, 3));
#else
INSTANTIATE_TEST_SUITE_P(Workers, SimulationTest, testing::Values(1, 3, 16));
#endif

// Long tasks, many tasks, a large weight: nothing but the weight counts.
TEST_P(SimulationTest, DeviceTimeIsByWeightWhateverTheTasksAreLike) {
  const std::vector<SimulatedProject> projects = {
      {.name = "long", .mean_seconds = 60},
      {.name = "short", .mean_seconds = 2},
      {.name = "heavy", .weight = 2, .mean_seconds = 10}};
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    const SimulationResult result = Simulate(projects, GetParam(), 4'000, seed);
    std::map<std::string, double> shares = SharesOf(result);
    // Clocks differ by at most a longest task (90 s) on each worker, of 4,000 s on each: 2.3 %, and
    // the last tasks are cut off.
    EXPECT_NEAR(shares["long"], 0.25, 0.03) << "seed " << seed;
    EXPECT_NEAR(shares["short"], 0.25, 0.03) << "seed " << seed;
    EXPECT_NEAR(shares["heavy"], 0.5, 0.03) << "seed " << seed;
  }
}

// A project that comes late waits for a worker, not for its debts or others' rights.
TEST_P(SimulationTest, NobodyStarves) {
  std::vector<SimulatedProject> projects;
  for (int i = 0; i < 8; ++i) projects.push_back({.name = absl::StrCat("flood", i), .weight = 10});
  projects.push_back({.name = "late", .weight = 1, .mean_seconds = 10, .from = 1'000});
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    const SimulationResult result = Simulate(projects, GetParam(), 6'000, seed, 1'000);
    // Its share of the weights is 1 / 81, a task at most 15 s and 15 s ahead of its turn.
    const double longest = 81.0 * (15 + 30) / GetParam() + 15;
    EXPECT_LE(result.longest_wait.at("late"), longest) << "seed " << seed;
    EXPECT_NEAR(SharesOf(result).at("late"), 1 / 81.0, 0.006) << "seed " << seed;
  }
}

// A pause is no saving: after a long time away, a project gets its share and no more.
TEST_P(SimulationTest, TimeAwayGivesNoClaim) {
  const std::vector<SimulatedProject> projects = {{.name = "steady"},
                                                  {.name = "back", .from = 2'000}};
  const SimulationResult result = Simulate(projects, GetParam(), 6'000, 7, 2'000);
  EXPECT_NEAR(SharesOf(result).at("back"), 0.5, 0.03);
  // At worst it waits for a worker.
  EXPECT_LE(result.longest_wait.at("steady"), 60);
}

TEST(Simulation, MostTrialsRunWhereTheirModelIs) {
  const std::vector<SimulatedProject> projects = {{.name = "a"}, {.name = "b"}};
  const SimulationResult result = Simulate(projects, 8, 3'000, 11);
  // By chance it would be one in six.
  EXPECT_GT(static_cast<double>(result.with_model_at_hand) / result.started, 0.5);
}

}  // namespace
}  // namespace qpruner::server
