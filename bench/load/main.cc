// The service under load, over gRPC, against a real server process.
//
//   qpruner_load_bench [--scenario calls kill watch workers restart] [--store sqlite postgres]
//   [--seconds 5]
//
// calls    CreateJob (every reply after its sync), GetJob, ListJobs among 100,000 jobs, in closed
// loops kill     SIGKILL to the server while jobs are created: every answered creation must be
// there watch    1,000 watchers on one job, then on 1,000 jobs workers  1,000 simulated workers:
// the time from queued to leased restart  the same with SIGKILL to the server half way: no lease
// may be lost
//
// Generator, server and database run on the same cores: the shares are printed, and the machine's
// load, without which the figures say little. The exit status tells of lost or doubled jobs, events
// and leases, never of slowness.
#include <signal.h>
#include <stdio.h>

#include <filesystem>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/synchronization/mutex.h"
#include "bench/load/calls_load.h"
#include "bench/load/service.h"
#include "bench/load/watch_load.h"
#include "bench/load/worker_load.h"
#include "tests/testing/process_usage.h"

namespace qpruner::load {
namespace {

struct Options {
  std::string folder = std::filesystem::temp_directory_path().string();
  CallsLoad calls;
  WatchLoad watch;
  WorkerLoad workers;
};

absl::Status RunScenario(const std::string& scenario, Store store, const Options& options) {
  const auto service = Service::Start(store, options.folder);
  if (!service.ok()) return service.status();
  printf("%s on %s (load %s)\n", scenario.c_str(), (*service)->store_name(), MachineLoad().c_str());
  fflush(stdout);
  if (scenario == "calls") return MeasureCalls(**service, options.calls);
  if (scenario == "kill") return KillWhileCreating(**service, options.calls);
  if (scenario == "workers") return RunWorkers(**service, options.workers, false);
  if (scenario == "restart") return RunWorkers(**service, options.workers, true);
  if (absl::Status status = WatchOneJob(**service, options.watch); !status.ok()) return status;
  return WatchManyJobs(**service, options.watch);
}

int Main(int argc, char** argv) {
  CLI::App app("Puts load on a server of its own");
  Options options;
  std::vector<std::string> scenarios = {"calls", "kill", "watch", "workers", "restart"};
  std::vector<std::string> stores = {"sqlite", "postgres"};
  double seconds = 5, task_seconds = 4;
  app.add_option("--scenario", scenarios, "Which of calls, kill, watch, workers, restart")
      ->check(CLI::IsMember({"calls", "kill", "watch", "workers", "restart"}));
  app.add_option("--store", stores, "sqlite, postgres")
      ->check(CLI::IsMember({"sqlite", "postgres"}));
  app.add_option("--folder", options.folder, "Where the stores lie: on the disk to be measured");
  app.add_option("--callers", options.calls.callers, "Calls in flight")->check(CLI::Range(1, 4096));
  app.add_option("--channels", options.calls.channels, "Connections of the callers")
      ->check(CLI::Range(1, 64));
  app.add_option("--seconds", seconds, "Duration of each measurement of calls");
  app.add_option("--listed-jobs", options.calls.listed_jobs, "Jobs that ListJobs lists");
  app.add_option("--watchers", options.watch.watchers)->check(CLI::Range(1, 100000));
  app.add_option("--events", options.watch.events, "Events of the job that all watch");
  app.add_option("--events-per-second", options.watch.events_per_second);
  app.add_option("--workers", options.workers.workers)->check(CLI::Range(1, 100000));
  app.add_option("--jobs-per-second", options.workers.jobs_per_second);
  app.add_option("--task-seconds", task_seconds, "How long a task keeps its simulated worker");
  CLI11_PARSE(app, argc, argv);
  options.calls.duration = absl::Seconds(seconds);
  options.workers.task_duration = absl::Seconds(task_seconds);
  signal(SIGPIPE, SIG_IGN);
  // As qpruner-server does.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);

  int failed = 0;
  for (const std::string& scenario : scenarios) {
    for (const std::string& store : stores) {
      const absl::Status status =
          RunScenario(scenario, store == "postgres" ? Store::kPostgres : Store::kSqlite, options);
      if (status.ok()) continue;
      printf("  FAILED: %s\n", status.ToString().c_str());
      fflush(stdout);
      failed = 1;
    }
  }
  return failed;
}

}  // namespace
}  // namespace qpruner::load

int main(int argc, char** argv) { return qpruner::load::Main(argc, argv); }
