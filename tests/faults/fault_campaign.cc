// A service that is broken at random, round after round, and what must hold after each.
//
//   qpruner_fault_campaign [--rounds 20] [--seed N] [--store sqlite postgres] [--real-engine]
//
// A round creates jobs and, while they run, begins one to three faults at random moments: SIGKILL
// or SIGSTOP (for longer than a lease) of server, worker or engine, a cable cut, silent or reset
// between workers and server or server and PostgreSQL, a full disk, a wall clock set by an hour,
// damaged artifacts, a worker that is silent and comes back with a wrong result. Then: no accepted
// job is lost or doubled, each ends once, with the result of an undisturbed run, no stale attempt's
// result counts, events have no gap.
//
// Round R of seed S is round 0 of seed S + R. The faults and their times depend on the seed alone;
// how processes interleave does not.
#include <signal.h>
#include <stdio.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "tests/faults/fault_injector.h"
#include "tests/faults/fleet.h"
#include "tests/faults/followed_job.h"
#include "tests/faults/job_invariants.h"
#include "tests/testing/job_outcome.h"
#include "tests/testing/process_usage.h"
#include "tests/testing/scripted_job.h"
#include "tests/testing/small_job.h"

namespace qpruner {
namespace {

// Jobs of the same variant have the same result.
constexpr int kVariants = 3;

struct Options {
  int rounds = 20;
  uint64_t seed = 0;
  int jobs = 3;
  bool real_engine = false;
};

v1::CreateJobRequest MakeRequest(int variant, const std::string& id, bool real_engine) {
  v1::CreateJobRequest request = ScriptedRequest();
  if (real_engine) *request.mutable_job() = SmallJob();
  v1::CompressionSpec& spec = *request.mutable_job()->mutable_spec();
  spec.mutable_search()->set_max_trials(real_engine ? 5 : 5 + variant);
  spec.mutable_search()->set_seed(variant);
  // The faults of a round must not use them up.
  spec.mutable_limits()->set_max_attempts(20);
  request.set_request_id(id);
  return request;
}

class Campaign {
 public:
  Campaign(Fleet& fleet, Options options) : fleet_(fleet), options_(options) {}

  // The results of undisturbed runs.
  absl::Status LearnOutcomes() {
    for (int variant = 0; variant < (options_.real_engine ? 1 : kVariants); ++variant) {
      FollowedJob job(fleet_.jobs(), MakeRequest(variant, absl::StrCat("undisturbed-", variant),
                                                 options_.real_engine));
      const absl::Time deadline = absl::Now() + absl::Minutes(4);
      while (!job.ended() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
      RETURN_IF_ERROR(Check(job, nullptr));
      ASSIGN_OR_RETURN(outcomes_[variant], JobOutcome(fleet_.jobs(), job.name()));
      RETURN_IF_ERROR(Delete(job.name()));
    }
    return absl::OkStatus();
  }

  absl::Status RunRound(uint64_t seed) {
    std::mt19937_64 random(seed);
    FaultInjector faults(fleet_, random());
    const int job_count = options_.real_engine ? 1 : options_.jobs;
    const absl::Time start = absl::Now();
    std::vector<std::unique_ptr<FollowedJob>> jobs;
    std::vector<int> variants;
    for (int i = 0; i < job_count; ++i) {
      variants.push_back(options_.real_engine ? 0 : static_cast<int>(random() % kVariants));
      jobs.push_back(std::make_unique<FollowedJob>(
          fleet_.jobs(),
          MakeRequest(variants.back(), absl::StrCat(seed, "-", i), options_.real_engine)));
    }
    std::vector<absl::Duration> moments;
    const absl::Duration span = options_.real_engine ? absl::Seconds(6) : absl::Seconds(1);
    for (uint64_t count = 1 + random() % 3; count > 0; --count) {
      moments.push_back(faults.Uniform(absl::ZeroDuration(), span));
    }
    std::sort(moments.begin(), moments.end());

    printf("  seed %llu:", static_cast<unsigned long long>(seed));
    const absl::Time deadline = start + absl::Minutes(options_.real_engine ? 6 : 3);
    size_t begun = 0;
    const auto all_ended = [&] {
      for (const auto& job : jobs) {
        if (!job->ended()) return false;
      }
      return true;
    };
    while (!all_ended() || begun < moments.size() || faults.any_active()) {
      if (absl::Now() > deadline) {
        printf("\n");
        std::string open;
        for (const auto& job : jobs) {
          const std::vector<v1::JobEvent> events = job->events();
          absl::StrAppend(&open, job->ended() ? "" : job->name(), " ",
                          events.empty() ? "" : events.back().ShortDebugString(), "; ");
        }
        return absl::DeadlineExceededError(absl::StrCat("jobs do not end: ", open));
      }
      faults.EndDue();
      fleet_.Supervise();
      if (!fleet_.server().running() && !faults.server_down()) {
        const bool killed = fleet_.server().pid() == 0;
        if (!killed) {
          printf("\n");
          return absl::InternalError("the server ended by itself");
        }
        fleet_.EnsureServer().IgnoreError();  // Its database may be away: again soon.
      }
      if (begun < moments.size() && absl::Now() >= start + moments[begun]) {
        const absl::Duration at = absl::Now() - start;
        printf("%s %s at %.1f s", begun == 0 ? "" : ";", faults.BeginAny().c_str(),
               absl::ToDoubleSeconds(at));
        fflush(stdout);
        ++begun;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    printf(" ... %.1f s\n", absl::ToDoubleSeconds(absl::Now() - start));
    fflush(stdout);

    RETURN_IF_ERROR(faults.CompleteStaleLeases());
    for (size_t i = 0; i < jobs.size(); ++i) {
      RETURN_IF_ERROR(Check(*jobs[i], &outcomes_.at(variants[i])));
    }
    // Nothing was made twice, whatever was asked twice.
    ASSIGN_OR_RETURN(const int stored, CountJobs());
    if (stored != job_count) {
      return absl::DataLossError(
          absl::StrCat(stored, " jobs are stored, ", job_count, " were created"));
    }
    for (const auto& job : jobs) {
      retries_ += Retries(job->events());
      RETURN_IF_ERROR(Delete(job->name()));
    }
    return absl::OkStatus();
  }

  int retries() const { return retries_; }

 private:
  static void SetDeadline(grpc::ClientContext& context) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
  }

  static int Retries(const std::vector<v1::JobEvent>& events) {
    int retries = 0;
    for (const v1::JobEvent& event : events) {
      retries += event.trial_updated().state() == v1::Trial::RUNNING &&
                 event.trial_updated().attempt_count() > 1;
    }
    return retries;
  }

  absl::Status Check(const FollowedJob& job, const std::string* outcome) {
    RETURN_IF_ERROR(job.error());
    const std::vector<v1::JobEvent> events = job.events();
    RETURN_IF_ERROR(CheckEvents(events));
    const v1::JobEvent::StateChanged& end = events.back().state_changed();
    if (end.state() != v1::CompressionJob::SUCCEEDED) {
      return absl::InternalError(absl::StrCat(job.name(), " ended as ",
                                              v1::CompressionJob::State_Name(end.state()), ": ",
                                              end.error().message()));
    }
    ASSIGN_OR_RETURN(const std::vector<v1::JobEvent> stored,
                     ReplayEvents(fleet_.jobs(), job.name()));
    RETURN_IF_ERROR(CheckReplay(events, stored));
    RETURN_IF_ERROR(CheckArtifacts(fleet_.jobs(), job.name()));
    if (outcome == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::string got, JobOutcome(fleet_.jobs(), job.name()));
    if (got == *outcome) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("not the result of an undisturbed run: ", got, "\nbut: ", *outcome));
  }

  absl::StatusOr<int> CountJobs() {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::ListJobsRequest request;
    request.set_page_size(500);
    v1::ListJobsResponse response;
    RETURN_IF_ERROR(FromGrpcStatus(fleet_.jobs().ListJobs(&context, request, &response)));
    return response.jobs_size();
  }

  absl::Status Delete(const std::string& name) {
    grpc::ClientContext context;
    SetDeadline(context);
    v1::DeleteJobRequest request;
    request.set_name(name);
    google::protobuf::Empty response;
    return FromGrpcStatus(fleet_.jobs().DeleteJob(&context, request, &response));
  }

  Fleet& fleet_;
  const Options options_;
  std::map<int, std::string> outcomes_;
  int retries_ = 0;
};

absl::Status Run(Fleet::Options fleet_options, const Options& options, uint64_t first_seed) {
  fleet_options.disk_bytes = int64_t{256} << 20;
  ASSIGN_OR_RETURN(const std::unique_ptr<Fleet> fleet, Fleet::Start(fleet_options));
  Campaign campaign(*fleet, options);
  absl::Status status = campaign.LearnOutcomes();
  for (int round = 0; status.ok() && round < options.rounds; ++round) {
    status = campaign.RunRound(first_seed + static_cast<uint64_t>(round));
  }
  if (status.ok()) {
    printf("  %d trials were leased again\n", campaign.retries());
    status = fleet->Stop();
  }
  if (!status.ok()) printf("%s\n", fleet->LogTails().c_str());
  return status;
}

int Main(int argc, char** argv) {
  CLI::App app("Breaks a service at random and checks what must hold");
  Options options;
  options.seed = std::random_device()();
  std::vector<std::string> stores = {"sqlite", "postgres"};
  Fleet::Options fleet;
  app.add_option("--rounds", options.rounds, "In all, shared by the stores")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of the first round; printed");
  app.add_option("--store", stores, "sqlite, postgres")
      ->check(CLI::IsMember({"sqlite", "postgres"}));
  app.add_option("--jobs", options.jobs, "At the same time, without --real-engine")
      ->check(CLI::Range(1, 100));
  app.add_option("--task-milliseconds", fleet.task_milliseconds);
  app.add_flag("--real-engine", options.real_engine,
               "Compress the shipped model, a job a round, instead of doing arithmetic");
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  fleet.engine = BuiltProgram(options.real_engine ? "qpruner-engine" : "qpruner_arithmetic_engine");
  if (options.real_engine) fleet.workers = 2;

  printf("seed %llu, %d rounds, load %s\n", static_cast<unsigned long long>(options.seed),
         options.rounds, MachineLoad().c_str());
  fflush(stdout);
  const int all_rounds = options.rounds;
  uint64_t seed = options.seed;
  for (size_t i = 0; i < stores.size(); ++i) {
    // The first store takes the odd one.
    options.rounds =
        (all_rounds + static_cast<int>(stores.size() - 1 - i)) / static_cast<int>(stores.size());
    if (options.rounds == 0) continue;
    fleet.postgres = stores[i] == "postgres";
    printf("%d rounds on %s\n", options.rounds, stores[i].c_str());
    const absl::Status status = Run(fleet, options, seed);
    if (!status.ok()) {
      printf("FAILED: %s\n", status.ToString().c_str());
      if (absl::IsNotFound(status) && fleet.postgres) printf("--store sqlite does without it\n");
      return 1;
    }
    seed += static_cast<uint64_t>(options.rounds);
  }
  printf("all invariants held\n");
  return 0;
}

}  // namespace
}  // namespace qpruner

int main(int argc, char** argv) { return qpruner::Main(argc, argv); }
