// qpruner-worker: the agent of one device. It takes tasks from a server and has its engine work on
// them.
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <stop_token>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/id_generator.h"
#include "grpcpp/grpcpp.h"
#include "proto/channel_security.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "spdlog/spdlog.h"
#include "worker/worker_loop.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;

// The shipped data: data/ of the source tree around a build, share/qpruner beside an installation.
std::string DefaultBuiltinDir(const fs::path& bin) {
  const fs::path in_tree = bin / "../../../data";
  if (fs::exists(in_tree / "models")) return in_tree.lexically_normal().string();
  return (bin / "../share/qpruner").lexically_normal().string();
}

// The host's name as a worker's name: [a-z0-9][a-z0-9.-]{0,62}.
std::string DefaultName() {
  char host[64] = {};
  gethostname(host, sizeof host - 1);
  std::string name;
  for (char c : std::string(host)) {
    c = absl::ascii_tolower(static_cast<unsigned char>(c));
    name += absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ? c : '-';
  }
  return name.empty() || !absl::ascii_isalnum(static_cast<unsigned char>(name[0]))
             ? absl::StrCat("worker", name)
             : name;
}

int Main(int argc, char** argv) {
  const fs::path bin = fs::read_symlink("/proc/self/exe").parent_path();
  std::string server = "127.0.0.1:7421";
  ChannelSecurity security;
  std::string device = "auto";
  int threads = 0;
  WorkerLoop::Options options;
  options.worker = DefaultName();
  options.builtin_dir = DefaultBuiltinDir(bin);
  std::string engine = (bin / "qpruner-engine").string();

  CLI::App app("Takes compression tasks from a QPruner server and runs them on one device.",
               "qpruner-worker");
  app.add_option("--server", server, "Address of the server")->capture_default_str();
  app.add_option("--tls-ca", security.ca, "PEM authorities of the server's certificate: use TLS");
  app.add_option("--tls-cert", security.certificate, "PEM certificate to show to the server");
  app.add_option("--tls-key", security.key, "PEM key of --tls-cert");
  app.add_option("--token-file", security.token_file,
                 "File with this worker's token; read again when it changes");
  app.add_flag("--insecure", security.insecure,
               "Allow a token to travel unencrypted: for private networks");
  app.add_option("--name", options.worker,
                 "Name of this worker: stable over restarts, unique among workers")
      ->capture_default_str();
  app.add_option("--data-dir", options.data_dir, "Scratch folder, of this worker alone")
      ->required();
  app.add_option("--engine", engine, "The engine's program")->capture_default_str();
  app.add_option("--builtin-dir", options.builtin_dir, "Data shipped with QPruner: builtin:// URIs")
      ->capture_default_str();
  app.add_option("--device", device, "auto, cpu, cuda:0, ...")->capture_default_str();
  app.add_option("--threads", threads, "CPU threads of the engine; 0: one a core")
      ->capture_default_str();
  app.add_option("--max-cache-bytes", options.max_cache_bytes,
                 "Most bytes of cached artifacts between tasks")
      ->capture_default_str();
  app.set_version_flag("--version", QPRUNER_VERSION);
  CLI11_PARSE(app, argc, argv);

  options.incarnation = SystemIdGenerator().Hex(16);
  options.version = QPRUNER_VERSION;
  options.engine.argv = {engine, "--device", device, "--threads", std::to_string(threads)};

  // Blocked before any thread starts, so that only the thread below sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::stop_source drain;
  std::thread([signals, drain]() mutable {
    int signal = 0;
    sigwait(&signals, &signal);
    spdlog::info("draining after signal {}", signal);
    drain.request_stop();
    sigwait(&signals, &signal);
    _exit(128 + signal);
  }).detach();

  grpc::ChannelArguments arguments;
  // A server that was restarted is found within a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const auto channel = OpenSecureChannel(server, security, arguments);
  if (!channel.ok()) {
    spdlog::error("{}", std::string(channel.status().message()));
    return 2;
  }
  const auto stub = internal::v1::WorkerService::NewStub(*channel);

  auto loop = WorkerLoop::Create(std::move(options), *stub, RealClock());
  if (!loop.ok()) {
    spdlog::error("{}", std::string(loop.status().message()));
    return 1;
  }
  if (absl::Status status = (*loop)->Run(drain.get_token()); !status.ok()) {
    spdlog::error("{}", std::string(status.message()));
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace qpruner::worker

int main(int argc, char** argv) { return qpruner::worker::Main(argc, argv); }
