// qpruner-worker: the agent of one device. It takes tasks from a server and has its engine work on
// them.
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/durable_file.h"
#include "base/environment_secret.h"
#include "base/id_generator.h"
#include "base/log_lines.h"
#include "base/status_macros.h"
#include "grpcpp/grpcpp.h"
#include "net/s3_credentials.h"
#include "proto/channel_security.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"
#include "worker/task_folders.h"
#include "worker/worker_loop.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;

// Exit code: starting again does not help.
constexpr int kBadSetting = 2;

// The shipped data: data/ of the source tree around a build, share/qpruner beside an installation.
std::string DefaultBuiltinDir(const fs::path& bin) {
  const fs::path in_tree = bin / "../../../data";
  if (fs::exists(in_tree / "models")) return in_tree.lexically_normal().string();
  return (bin / "../share/qpruner").lexically_normal().string();
}

// The host's name as a worker's name: [a-z0-9][a-z0-9.-]{0,62}.
std::string HostName() {
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

// Workers of one machine differ by their devices: "host-cuda-1".
std::string DefaultName(const std::string& device) {
  const std::string host = HostName();
  if (device == "auto" || device == "cpu") return host;
  const std::string suffix = absl::StrReplaceAll(device.substr(0, 20), {{":", "-"}});
  return absl::StrCat(host.substr(0, 62 - suffix.size()), "-", suffix);
}

// What the flags about models say. Secrets leave the environment, as in LoadAwsCredentials.
absl::Status ConfigureSources(const std::vector<std::string>& model_roots, const std::string& hub,
                              const std::string& hub_token_file,
                              const std::string& s3_credentials_file, bool insecure,
                              WorkerLoop::Options& options) {
  ModelSourceOptions& sources = options.model_sources;
  std::vector<std::string> folders;
  bool no_folders = false;
  for (const std::string& root : model_roots) {
    if (absl::StartsWith(root, "s3://")) {
      const absl::StatusOr<S3Location> location = S3Location::Parse(root);
      if (!location.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--model-root ", location.status().message()));
      }
      sources.s3_models.push_back(*location);
    } else if (absl::StartsWith(root, "/")) {
      folders.push_back(root);
    } else if (root == "none") {
      no_folders = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--model-root must be an absolute folder, s3://bucket/prefix or none, is \"",
                       root, "\""));
    }
  }
  if (no_folders && !folders.empty()) {
    return absl::InvalidArgumentError("--model-root is none, and a folder as well");
  }
  if (no_folders || !folders.empty()) options.model_roots = std::move(folders);
  std::string token = TakeFromEnvironment("HF_TOKEN");
  if (hub != "off") {
    absl::string_view host = hub;
    if (!absl::StartsWith(hub, "https://") && !absl::StartsWith(hub, "http://")) {
      return absl::InvalidArgumentError(
          absl::StrCat("--hub must be https://HOST, http://HOST or off, is \"", hub, "\""));
    }
    if (!hub_token_file.empty()) {
      ASSIGN_OR_RETURN(token, ReadFile(hub_token_file, 4096));
    }
    token = std::string(absl::StripAsciiWhitespace(token));
    if (!token.empty() && !insecure && absl::ConsumePrefix(&host, "http://") &&
        !IsLocalAddress(std::string(host))) {
      return absl::InvalidArgumentError(
          absl::StrCat("the hub's token would travel to ", hub,
                       " unencrypted: use https://, or pass --insecure if the network is private"));
    }
    sources.hub = HubOptions{.endpoint = hub, .token = token};
  }
  if (absl::Status endpoint = CheckS3Endpoint(sources.s3.endpoint); !endpoint.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--s3-endpoint ", endpoint.message()));
  }
  absl::StatusOr<AwsCredentials> credentials = LoadAwsCredentials(s3_credentials_file);
  if (!sources.s3_models.empty()) {
    RETURN_IF_ERROR(credentials.status());
    sources.s3.credentials = *std::move(credentials);
  }
  return absl::OkStatus();
}

// What the engine gives up (worker/engine/confinement).
struct EngineConfinement {
  std::string level = "auto";
  int64_t memory_bytes = 0;
  int64_t file_bytes = 0;
  int64_t cpus = 0;
  int64_t first_cpu = 0;
};

std::vector<std::string> ConfinementArguments(const EngineConfinement& confinement,
                                              const WorkerLoop::Options& options) {
  const TaskFolders folders(options.data_dir);
  std::vector<std::string> arguments = {"--confinement",  confinement.level,
                                        "--memory-bytes", std::to_string(confinement.memory_bytes),
                                        "--file-bytes",   std::to_string(confinement.file_bytes),
                                        "--cpus",         std::to_string(confinement.cpus),
                                        "--first-cpu",    std::to_string(confinement.first_cpu),
                                        "--writable",     folders.outputs,
                                        "--writable",     folders.scratch};
  if (options.model_roots == std::vector<std::string>{"/"}) return arguments;
  // The kernel then holds the engine to what the agent has checked.
  std::vector<std::string> readable = options.model_roots;
  readable.push_back(options.builtin_dir);
  readable.push_back(folders.inputs);
  for (const std::string& folder : readable)
    arguments.insert(arguments.end(), {"--readable", folder});
  return arguments;
}

int Main(int argc, char** argv) {
  const fs::path bin = fs::read_symlink("/proc/self/exe").parent_path();
  std::string server = "127.0.0.1:7421";
  ChannelSecurity security;
  std::string device = "auto";
  std::string log_level = "info";
  int threads = 0;
  EngineConfinement confinement;
  WorkerLoop::Options options;
  options.builtin_dir = DefaultBuiltinDir(bin);
  std::string engine = (bin / "qpruner-engine").string();

  std::vector<std::string> model_roots;
  std::string hub = HubOptions().endpoint;
  std::string hub_token_file;
  std::string s3_credentials_file;

  CLI::App app("Takes compression tasks from a QPruner server and runs them on one device.",
               "qpruner-worker");
  app.add_option("--server", server, "Address of the server")->capture_default_str();
  app.add_option("--tls-ca", security.ca, "PEM authorities of the server's certificate: use TLS");
  app.add_option("--tls-cert", security.certificate, "PEM certificate to show to the server");
  app.add_option("--tls-key", security.key, "PEM key of --tls-cert");
  app.add_option("--token-file", security.token_file,
                 "File with this worker's token; read again when it changes");
  app.add_flag("--insecure", security.insecure,
               "Allow tokens to travel unencrypted: for private networks");
  app.add_option("--name", options.worker,
                 "Name of this worker: stable over restarts, unique among workers (default: the "
                 "host's name, and the device if --device names one)");
  app.add_option("--data-dir", options.data_dir, "Scratch folder, of this worker alone")
      ->required();
  app.add_option("--engine", engine, "The engine's program")->capture_default_str();
  app.add_option("--builtin-dir", options.builtin_dir, "Data shipped with QPruner: builtin:// URIs")
      ->capture_default_str();
  app.add_option("--device", device, "auto, cpu, cuda:0, ...")->capture_default_str();
  app.add_option("--threads", threads, "CPU threads of the engine; 0: one a core")
      ->capture_default_str();
  app.add_option(
         "--engine-confinement", confinement.level,
         "Whether the engine gives up network, programs and files besides its own: required, "
         "auto (where the kernel can), off")
      ->check(CLI::IsMember({"required", "auto", "off"}))
      ->capture_default_str();
  app.add_option("--engine-memory-bytes", confinement.memory_bytes,
                 "Memory that the engine may take, mapped files apart; 0: what the machine or "
                 "container has")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--engine-file-bytes", confinement.file_bytes,
                 "Largest file that the engine may write; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--engine-cpus", confinement.cpus,
                 "Processors that all threads of the engine together may run on; 0: all that the "
                 "machine or container has")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--engine-first-cpu", confinement.first_cpu,
                 "The first of --engine-cpus, from 0: workers of one machine should not share them")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-cache-bytes", options.max_cache_bytes,
                 "Most bytes of cached artifacts between tasks")
      ->capture_default_str();
  app.add_option(
      "--model-root", model_roots,
      "Folder that file:// models and texts must lie below, or s3://bucket/prefix of s3:// "
      "models; may be repeated (default: / for files, nothing for S3)");
  app.add_option("--hub", hub, "Where hf:// models come from, or off")
      ->envname("HF_ENDPOINT")
      ->capture_default_str();
  app.add_option("--hub-token-file", hub_token_file, "File that holds the hub's token");
  app.add_option("--max-model-bytes", options.model_sources.max_model_bytes,
                 "Largest model that is fetched")
      ->capture_default_str();
  app.add_option("--s3-endpoint", options.model_sources.s3.endpoint,
                 "Where s3:// models are, https://HOST[:PORT] (default: Amazon's, of the region)");
  app.add_option("--s3-region", options.model_sources.s3.region, "Region of s3:// models")
      ->capture_default_str();
  app.add_option("--s3-credentials-file", s3_credentials_file,
                 "AWS credentials file with a section [default] (or set AWS_ACCESS_KEY_ID and "
                 "AWS_SECRET_ACCESS_KEY)");
  app.set_version_flag("--version", QPRUNER_VERSION);
  app.add_option("--log-level", log_level, "debug, info, warning, error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kBadSetting;
  }
  if (options.worker.empty()) options.worker = DefaultName(device);

  spdlog::set_default_logger(spdlog::stderr_color_mt(options.worker));
  spdlog::set_formatter(OneLineFormatter("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ [%n] %v"));
  spdlog::set_level(spdlog::level::from_str(log_level));
  // A reader of the log that goes away must not end the worker.
  signal(SIGPIPE, SIG_IGN);

  if (absl::Status configured = ConfigureSources(model_roots, hub, hub_token_file,
                                                 s3_credentials_file, security.insecure, options);
      !configured.ok()) {
    spdlog::error("{}", std::string(configured.message()));
    return kBadSetting;
  }
  options.incarnation = SystemIdGenerator().Hex(16);
  options.version = QPRUNER_VERSION;
  options.data_dir = fs::absolute(options.data_dir).string();
  options.engine.argv = {engine, "--device", device, "--threads", std::to_string(threads)};
  const std::vector<std::string> confined = ConfinementArguments(confinement, options);
  options.engine.argv.insert(options.engine.argv.end(), confined.begin(), confined.end());

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
    return kBadSetting;
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
