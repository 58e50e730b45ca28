// Rates and latencies of the job store on this machine's disk.
//
//   qpruner_store_bench [--folder DIR] [--callers 64] [--seconds 5] [--postgres-url URL]
//
// With a URL (an empty database that syncs, on the same disk for a fair look), PostgreSQL is
// measured right after SQLite. bench/postgres_bench starts one for it.
//
// Every transaction is durable when it counts. "disk syncs" is what the disk does alone, one 4 KiB
// append and fdatasync after the other: the rate that a store without group commit cannot exceed.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "server/store/postgres_job_store.h"
#include "server/store/sqlite_job_store.h"

namespace qpruner::server {
namespace {

// Of about the size that a job with its defaults filled in has.
internal::v1::JobRecord MakeJob(const JobName& name) {
  internal::v1::JobRecord record;
  v1::CompressionJob& job = *record.mutable_job();
  job.set_name(name.ToString());
  job.set_state(v1::CompressionJob::PENDING);
  job.set_display_name(std::string(400, 'x'));
  (*job.mutable_labels())["team"] = "nlp";
  job.mutable_create_time()->set_seconds(1'700'000'000);
  job.set_last_event_sequence(1);
  return record;
}

absl::Status CreateJob(StoreTransaction& transaction, const JobName& name) {
  RETURN_IF_ERROR(transaction.InsertJob(MakeJob(name)));
  RETURN_IF_ERROR(transaction.InsertRequest(name.project, name.job, {name, "fingerprint"}));
  internal::v1::TaskRecord task;
  task.set_job(name.ToString());
  task.set_task_id("prepare");
  task.set_state(internal::v1::TaskRecord::QUEUED);
  task.mutable_create_time()->set_seconds(1'700'000'000);
  RETURN_IF_ERROR(transaction.PutTask(task));
  v1::JobEvent event;
  event.set_sequence(1);
  event.mutable_state_changed()->set_state(v1::CompressionJob::PENDING);
  return transaction.AppendEvent(name, event);
}

absl::Status AppendProgress(StoreTransaction& transaction, const JobName& name) {
  ASSIGN_OR_RETURN(internal::v1::JobRecord record, transaction.GetJob(name));
  v1::JobEvent event;
  event.set_sequence(record.job().last_event_sequence() + 1);
  event.mutable_progress()->set_message("Trial 7 of 24: measuring");
  record.mutable_job()->set_last_event_sequence(event.sequence());
  RETURN_IF_ERROR(transaction.AppendEvent(name, event));
  return transaction.UpdateJob(record);
}

// Runs `call(caller, round)` from `callers` threads for `duration` and prints a line.
void Measure(const char* what, int callers, absl::Duration duration,
             const std::function<absl::Status(int, int)>& call) {
  std::vector<std::vector<double>> milliseconds(callers);
  std::atomic<int64_t> failures = 0;
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      for (int round = 0; absl::Now() - start < duration; ++round) {
        const absl::Time begin = absl::Now();
        if (const absl::Status status = call(caller, round); !status.ok()) {
          if (failures++ == 0) fprintf(stderr, "%s\n", status.ToString().c_str());
        }
        milliseconds[caller].push_back(absl::ToDoubleMilliseconds(absl::Now() - begin));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  std::vector<double> all;
  for (const auto& some : milliseconds) all.insert(all.end(), some.begin(), some.end());
  std::sort(all.begin(), all.end());
  const auto quantile = [&](double q) { return all[static_cast<size_t>(q * (all.size() - 1))]; };
  printf("%-22s %3d callers  %9.0f /s   p50 %8.3f ms   p99 %8.3f ms   max %8.3f ms   failed %lld\n",
         what, callers, all.size() / seconds, quantile(0.5), quantile(0.99), all.back(),
         static_cast<long long>(failures));
  fflush(stdout);
}

void MeasureStore(JobStore& store, int callers, absl::Duration duration) {
  const auto name = [](int caller, int round) {
    return JobName{"bench", absl::StrCat("j-", caller, "-", round)};
  };
  const auto create = [&](const char* prefix) {
    return [&, prefix](int caller, int round) {
      JobName job = name(caller, round);
      job.job = absl::StrCat(prefix, job.job);
      return store.Transact(
          [&](StoreTransaction& transaction) { return CreateJob(transaction, job); });
    };
  };
  Measure("create job", callers, duration, create("many-"));
  Measure("create job", 1, duration, create("one-"));
  Measure("append event", callers, duration, [&](int caller, int) {
    return store.Transact([&](StoreTransaction& transaction) {
      return AppendProgress(transaction, {"bench", absl::StrCat("many-j-", caller, "-0")});
    });
  });
  const auto get = [&](int caller, int) {
    return store.Read([&](StoreReader& reader) {
      return reader.GetJob({"bench", absl::StrCat("many-j-", caller, "-0")}).status();
    });
  };
  Measure("get job", 1, duration, get);
  Measure("get job", callers, duration, get);
  Measure("list page of 50", 4, duration, [&](int, int) {
    return store.Read([&](StoreReader& reader) {
      return reader.ListJobs({"bench", {}, {}}, 50, "").status();
    });
  });
}

// The program's exit status.
int Open(const char* what, absl::StatusOr<std::unique_ptr<JobStore>> store, int callers,
         absl::Duration duration) {
  if (!store.ok()) {
    fprintf(stderr, "%s: %s\n", what, store.status().ToString().c_str());
    return 1;
  }
  printf("%s\n", what);
  MeasureStore(**store, callers, duration);
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Measures the job store");
  std::string folder = std::filesystem::temp_directory_path().string();
  int callers = 64;
  double seconds = 5;
  app.add_option("--folder", folder, "Where to put the store: on the disk to be measured");
  app.add_option("--callers", callers, "Threads that call at once")->check(CLI::Range(1, 1000));
  app.add_option("--seconds", seconds, "Duration of each measurement");
  PostgresOptions postgres;
  app.add_option("--postgres-url", postgres.url, "Also measure a PostgreSQL store there");
  app.add_option("--postgres-connections", postgres.connection_count, "As of qpruner-server");
  CLI11_PARSE(app, argc, argv);
  const absl::Duration duration = absl::Seconds(seconds);

  std::string root = absl::StrCat(folder, "/qpruner_store_bench.XXXXXX");
  if (mkdtemp(root.data()) == nullptr) {
    perror(root.c_str());
    return 1;
  }
  {
    const int fd = open(absl::StrCat(root, "/probe").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    const std::string page(4096, 'x');
    Measure("disk syncs", 1, duration, [&](int, int) {
      return write(fd, page.data(), page.size()) == 4096 && fdatasync(fd) == 0
                 ? absl::OkStatus()
                 : absl::UnavailableError("cannot write");
    });
    close(fd);
  }
  SqliteJobStoreOptions options;
  options.folder = absl::StrCat(root, "/store");
  const int failed = Open("SQLite", OpenSqliteJobStore(options), callers, duration);
  std::filesystem::remove_all(root);
  if (failed != 0 || postgres.url.empty()) return failed;
  return Open("PostgreSQL", OpenPostgresJobStore(postgres), callers, duration);
}

}  // namespace
}  // namespace qpruner::server

int main(int argc, char** argv) { return qpruner::server::Main(argc, argv); }
