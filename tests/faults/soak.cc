// Many jobs through a few workers, with a process killed now and then: does anything pile up?
//
//   qpruner_soak [--jobs 2000] [--real-engine] [--seed N]
//
// Each time a job ends, with a probability of 1 % the server, a worker or an engine is killed. The
// server's memory, files and threads are sampled all the time. Every hundred jobs the finished ones
// are deleted. In the end all are, and nothing may be left: no process, no file of an artifact or a
// task, no row. Memory, files and threads must not grow between the second third and the last.
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "tests/faults/fleet.h"
#include "tests/faults/followed_job.h"
#include "tests/faults/job_invariants.h"
#include "tests/testing/job_outcome.h"
#include "tests/testing/process_usage.h"
#include "tests/testing/scripted_job.h"
#include "tests/testing/small_job.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

struct Options {
  int jobs = 2000;
  int at_once = 8;
  double kill_share = 0.01;
  uint64_t seed = 0;
  bool real_engine = false;
};

struct Sample {
  double minutes = 0;
  int ended = 0;
  // Of this server process, which began so many jobs ago.
  int64_t resident = 0;
  int files = 0;
  int threads = 0;
};

v1::CreateJobRequest MakeRequest(int number, uint64_t seed, bool real_engine) {
  v1::CreateJobRequest request = ScriptedRequest();
  if (real_engine) *request.mutable_job() = SmallJob();
  request.mutable_job()->mutable_spec()->mutable_search()->set_max_trials(4);
  request.mutable_job()->mutable_spec()->mutable_limits()->set_max_attempts(20);
  request.set_request_id(absl::StrCat("soak-", seed, "-", number));
  return request;
}

// A column of the memory over the run.
void Plot(const std::vector<Sample>& samples) {
  if (samples.empty()) return;
  int64_t most = 1;
  for (const Sample& sample : samples) most = std::max(most, sample.resident);
  printf("  minutes   jobs   server MiB  files  threads\n");
  const size_t step = std::max<size_t>(samples.size() / 24, 1);
  for (size_t i = 0; i < samples.size(); i += step) {
    const Sample& s = samples[i];
    printf("  %7.1f %6d   %10.1f  %5d  %7d  %s\n", s.minutes, s.ended,
           static_cast<double>(s.resident) / (1 << 20), s.files, s.threads,
           std::string(static_cast<size_t>(40 * s.resident / most), '#').c_str());
  }
}

int64_t Median(std::vector<Sample>::const_iterator begin, std::vector<Sample>::const_iterator end,
               const std::function<int64_t(const Sample&)>& value) {
  std::vector<int64_t> values;
  std::transform(begin, end, std::back_inserter(values), value);
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The last third against the middle one, by medians: single samples fall into restarts. The first
// third fills caches and pools. The slack is what an allocator rounds to.
absl::Status CheckFlat(const std::vector<Sample>& samples) {
  if (samples.size() < 30) {
    printf("  too short a run (%zu samples) to say whether memory is flat\n", samples.size());
    return absl::OkStatus();
  }
  const auto middle = samples.begin() + static_cast<int64_t>(samples.size() / 3);
  const auto last = samples.begin() + static_cast<int64_t>(2 * samples.size() / 3);
  const auto check = [&](const char* what, int64_t slack,
                         const std::function<int64_t(const Sample&)>& value) -> absl::Status {
    const int64_t before = Median(middle, last, value), after = Median(last, samples.end(), value);
    printf("  %s, middle and last third: %lld, %lld\n", what, static_cast<long long>(before),
           static_cast<long long>(after));
    if (after <= before + before / 10 + slack) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(what, " grow: ", before, " to ", after));
  };
  RETURN_IF_ERROR(
      check("bytes resident", int64_t{4} << 20, [](const Sample& s) { return s.resident; }));
  RETURN_IF_ERROR(check("open files", 4, [](const Sample& s) { return int64_t{s.files}; }));
  return check("threads", 4, [](const Sample& s) { return int64_t{s.threads}; });
}

absl::Status Delete(Fleet& fleet, const std::string& name) {
  absl::Status status = absl::UnavailableError("not called");
  for (int tries = 0; tries < 100 && absl::IsUnavailable(status); ++tries) {
    if (tries > 0) absl::SleepFor(absl::Milliseconds(50));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    v1::DeleteJobRequest request;
    request.set_name(name);
    google::protobuf::Empty response;
    status = FromGrpcStatus(fleet.jobs().DeleteJob(&context, request, &response));
  }
  // The reply of a deletion that was done may have been lost.
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

std::string Kill(Fleet& fleet, std::mt19937_64& random) {
  switch (random() % 3) {
    case 0:
      fleet.server().Kill();
      return "server";
    case 1: {
      const pid_t pid = fleet.WorkerPid(random() % fleet.worker_count());
      if (pid != 0) kill(pid, SIGKILL);
      return "worker";
    }
    default: {
      const std::vector<pid_t> engines = fleet.Engines();
      if (!engines.empty()) kill(engines[random() % engines.size()], SIGKILL);
      return "engine";
    }
  }
}

// Rows of every table of a stopped server's store.
absl::Status CheckNoRows(const std::string& path) {
  sqlite3* database = nullptr;
  if (sqlite3_open_v2(path.c_str(), &database, SQLITE_OPEN_READWRITE, nullptr) != SQLITE_OK) {
    return absl::InternalError(absl::StrCat("cannot open ", path));
  }
  std::vector<std::string> tables, filled;
  const auto add = [](void* list, int, char** values, char**) {
    static_cast<std::vector<std::string>*>(list)->push_back(values[0]);
    return 0;
  };
  sqlite3_exec(database,
               "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
               add, &tables, nullptr);
  for (const std::string& table : tables) {
    std::vector<std::string> count;
    // Tables of counts keep a row for each state.
    const char* which = absl::EndsWith(table, "_counts") ? " WHERE count <> 0" : "";
    sqlite3_exec(database, absl::StrCat("SELECT count(*) FROM \"", table, "\"", which).c_str(), add,
                 &count, nullptr);
    printf("%s%s %s", tables.front() == table ? "  rows: " : ", ", table.c_str(),
           count.empty() ? "?" : count[0].c_str());
    if (count.empty() || count[0] != "0") filled.push_back(table);
  }
  sqlite3_close(database);
  printf("\n");
  if (tables.empty()) return absl::InternalError("the store has no tables");
  if (filled.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("rows are left in ", filled[0]));
}

absl::Status CheckNoFiles(const std::string& folder) {
  int count = 0;
  std::string first;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(folder, ignored)) {
    if (!entry.is_regular_file(ignored) || entry.path().filename() == "lock") continue;
    if (++count == 1) first = entry.path().string();
  }
  printf("  files left in %s: %d\n", fs::path(folder).filename().c_str(), count);
  if (count == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(count, " files are left, such as ", first));
}

absl::Status Soak(Fleet& fleet, const Options& options) {
  std::mt19937_64 random(options.seed);
  std::deque<std::unique_ptr<FollowedJob>> running;
  std::vector<std::string> finished;
  std::vector<Sample> samples;
  std::map<std::string, int> kills;
  std::string outcome;
  int created = 0, ended = 0, restarts = 0;
  const absl::Time start = absl::Now();
  absl::Time next_sample = start, last_end = start;
  while (ended < options.jobs) {
    while (created < options.jobs && static_cast<int>(running.size()) < options.at_once) {
      running.push_back(std::make_unique<FollowedJob>(
          fleet.jobs(), MakeRequest(created++, options.seed, options.real_engine)));
    }
    for (auto it = running.begin(); it != running.end();) {
      if (!(*it)->ended()) {
        ++it;
        continue;
      }
      const FollowedJob& job = **it;
      RETURN_IF_ERROR(job.error());
      RETURN_IF_ERROR(CheckEvents(job.events()));
      finished.push_back(job.name());
      ++ended;
      last_end = absl::Now();
      it = running.erase(it);
      if (std::uniform_real_distribution<double>(0, 1)(random) < options.kill_share) {
        ++kills[Kill(fleet, random)];
      }
      RETURN_IF_ERROR(fleet.EnsureServer());
    }
    if (absl::Now() - last_end > absl::Minutes(3)) {
      return absl::DeadlineExceededError("no job has ended for 3 minutes");
    }
    // Equal jobs, equal results: of each batch the first is compared.
    if (finished.size() >= 100 || ended == options.jobs) {
      ASSIGN_OR_RETURN(const std::string got, JobOutcome(fleet.jobs(), finished.front()));
      if (outcome.empty()) outcome = got;
      if (got != outcome) return absl::DataLossError(absl::StrCat("another result: ", got));
      for (const std::string& name : finished) RETURN_IF_ERROR(Delete(fleet, name));
      finished.clear();
    }
    restarts += fleet.Supervise();
    if (absl::Now() >= next_sample) {
      const pid_t pid = fleet.server().pid();
      samples.push_back({absl::ToDoubleMinutes(absl::Now() - start), ended, ResidentBytes(pid),
                         OpenFileCount(pid), ThreadCount(pid)});
      next_sample = absl::Now() + absl::Seconds(1);
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  Plot(samples);
  printf("  %d jobs in %.1f minutes; killed:", ended, absl::ToDoubleMinutes(absl::Now() - start));
  for (const auto& [what, count] : kills) printf(" %s %d", what.c_str(), count);
  printf("; workers started again: %d\n", restarts);
  RETURN_IF_ERROR(fleet.Stop());
  printf("  processes left: 0\n");
  RETURN_IF_ERROR(CheckFlat(samples));
  RETURN_IF_ERROR(CheckNoRows(fleet.data_dir() + "/store/jobs.sqlite"));
  return CheckNoFiles(fleet.data_dir() + "/artifacts");
}

int Main(int argc, char** argv) {
  CLI::App app("Runs many jobs through a few workers, and looks for what piles up");
  Options options;
  options.seed = std::random_device()();
  Fleet::Options fleet_options;
  fleet_options.workers = 4;
  fleet_options.task_milliseconds = 5;
  app.add_option("--jobs", options.jobs)->check(CLI::Range(1, 10'000'000))->capture_default_str();
  app.add_option("--at-once", options.at_once, "Jobs queued or running at a time")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--kill-share", options.kill_share, "Kills for each job that ends")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the kills; printed");
  app.add_option("--workers", fleet_options.workers)->check(CLI::Range(1, 64));
  app.add_flag("--real-engine", options.real_engine,
               "Compress the shipped model instead of doing arithmetic");
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  fleet_options.engine =
      BuiltProgram(options.real_engine ? "qpruner-engine" : "qpruner_arithmetic_engine");
  printf("%d jobs through %d workers, seed %llu, load %s\n", options.jobs, fleet_options.workers,
         static_cast<unsigned long long>(options.seed), MachineLoad().c_str());
  fflush(stdout);
  const auto fleet = Fleet::Start(fleet_options);
  const absl::Status status = fleet.ok() ? Soak(**fleet, options) : fleet.status();
  if (status.ok()) {
    printf("nothing was left\n");
    return 0;
  }
  printf("FAILED: %s\n", status.ToString().c_str());
  if (fleet.ok()) printf("%s\n", (*fleet)->LogTails().c_str());
  return 1;
}

}  // namespace
}  // namespace qpruner

int main(int argc, char** argv) { return qpruner::Main(argc, argv); }
