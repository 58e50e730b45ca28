// One method of one gRPC service under load; bench/peers compares services with it.
//
//   qpruner_raw_load_bench --address HOST:PORT --method /package.Service/Method --requests FILE
//   [--replies FILE] [--server-pid PID] [--callers 64] [--seconds 10]
//
// Prints what it measured as one line of JSON. FILEs hold messages, see raw_calls.h. Fails when no
// call succeeded.
#include <signal.h>
#include <stdio.h>

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/synchronization/mutex.h"
#include "base/status_macros.h"
#include "bench/load/cpu_shares.h"
#include "bench/load/raw_calls.h"
#include "nlohmann/json.hpp"
#include "tests/testing/process_usage.h"

namespace qpruner::load {
namespace {

struct Options {
  RawLoad load;
  std::string requests;
  std::string replies;
  int server_pid = 0;
  double seconds = 10;
  double warm_up_seconds = 1;
};

void Print(const CallStats& stats, const CpuShares::Cores& cores, double server_seconds) {
  const auto calls = static_cast<double>(stats.milliseconds.size());
  printf("%s\n",
         nlohmann::json{
             {"calls", stats.milliseconds.size()},
             {"failed", stats.failure_count},
             {"first_failure", stats.first_failure},
             {"seconds", absl::ToDoubleSeconds(stats.duration)},
             {"rate", stats.rate()},
             {"p50_ms", Quantile(stats.milliseconds, 0.5)},
             {"p99_ms", Quantile(stats.milliseconds, 0.99)},
             {"max_ms", Quantile(stats.milliseconds, 1)},
             {"server_cores", cores.server},
             {"generator_cores", cores.generator},
             {"other_cores", cores.others},
             {"calls_per_server_cpu_second", server_seconds > 0 ? calls / server_seconds : 0},
             {"load", MachineLoad()},
         }
             .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
             .c_str());
}

absl::Status Measure(Options& options) {
  ASSIGN_OR_RETURN(options.load.requests, ReadMessages(options.requests));
  ASSIGN_OR_RETURN(const std::unique_ptr<RawCalls> calls, RawCalls::Connect(options.load));
  calls->Run(absl::Seconds(options.warm_up_seconds));
  const CpuShares shares(options.server_pid, 0);
  const CallStats stats = calls->Run(absl::Seconds(options.seconds));
  Print(stats, shares.Measure(), shares.ServerSeconds());
  if (!options.replies.empty()) {
    RETURN_IF_ERROR(WriteMessages(options.replies, calls->Exchanges()));
  }
  if (stats.milliseconds.empty()) return absl::UnavailableError(stats.first_failure);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Puts load on one method of a gRPC service");
  Options options;
  app.add_option("--address", options.load.address, "HOST:PORT")->required();
  app.add_option("--method", options.load.method, "/package.Service/Method")->required();
  app.add_option("--requests", options.requests, "What to send, in turn")->required();
  app.add_option("--replies", options.replies, "Where replies are written, behind their requests");
  app.add_option("--kept-replies", options.load.kept_replies, "So many of each caller at most");
  app.add_option("--server-pid", options.server_pid, "Whose CPU time, and its children's, is told");
  app.add_option("--callers", options.load.callers, "Calls in flight")->check(CLI::Range(1, 4096));
  app.add_option("--channels", options.load.channels, "Connections")->check(CLI::Range(1, 64));
  app.add_option("--seconds", options.seconds, "Duration of the measurement");
  app.add_option("--warm-up-seconds", options.warm_up_seconds, "Calls before it");
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  // As qpruner-server does.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const absl::Status status = Measure(options);
  if (!status.ok()) fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::load

int main(int argc, char** argv) { return qpruner::load::Main(argc, argv); }
