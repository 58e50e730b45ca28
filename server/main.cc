// qpruner-server: the API, the queue and the stores in one process.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/durable_file.h"
#include "base/environment_secret.h"
#include "base/id_generator.h"
#include "base/log_lines.h"
#include "base/status_macros.h"
#include "net/s3_credentials.h"
#include "server/auth/token_table.h"
#include "server/server.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

namespace fs = std::filesystem;

// Exit code: starting again does not help.
constexpr int kBadSetting = 2;
constexpr char kPasswordVariable[] = "QPRUNER_POSTGRES_PASSWORD";

// Where a program keeps a user's state: $XDG_STATE_HOME/qpruner, else ~/.local/state/qpruner.
std::string DefaultDataDir() {
  if (const char* state = getenv("XDG_STATE_HOME"); state != nullptr && *state != '\0') {
    return absl::StrCat(state, "/qpruner");
  }
  const char* home = getenv("HOME");
  return absl::StrCat(home != nullptr ? home : "/var/lib", "/.local/state/qpruner");
}

int PrintNewToken(const NewTokenOptions& options) {
  const absl::StatusOr<std::string> token = AddNewToken(options, SystemIdGenerator());
  if (!token.ok()) {
    fprintf(stderr, "qpruner-server: %s\n", std::string(token.status().message()).c_str());
    return 2;
  }
  printf("%s\n", token->c_str());
  return 0;
}

// From the file, or else from the environment, which is then cleared: children inherit it.
absl::StatusOr<std::string> ReadPostgresPassword(const std::string& file) {
  std::string password = TakeFromEnvironment(kPasswordVariable);
  if (!file.empty()) {
    ASSIGN_OR_RETURN(password, ReadFile(file, 4096));
  }
  return std::string(absl::StripTrailingAsciiWhitespace(password));
}

// A URL is looked at when a transfer begins, so none needs longer; and it is a secret.
constexpr absl::Duration kLongestPresignExpiry = absl::Hours(1);

struct S3Flags {
  std::string url;
  std::string endpoint;
  std::string region = "us-east-1";
  std::string credentials_file;
  std::string presign = "off";
  absl::Duration presign_expiry = absl::Minutes(5);

  absl::Status Configure(ServerOptions& options) const {
    if (url.empty()) {
      return endpoint.empty() && credentials_file.empty() && presign == "off"
                 ? absl::OkStatus()
                 : absl::InvalidArgumentError("--s3-... is given, but --artifacts-url is not");
    }
    const absl::StatusOr<S3Location> location = S3Location::Parse(url);
    if (!location.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--artifacts-url ", location.status().message()));
    }
    S3ArtifactStoreOptions s3{.location = *location};
    if (absl::Status checked = CheckS3Endpoint(endpoint); !checked.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--s3-endpoint ", checked.message()));
    }
    if (presign_expiry < absl::Seconds(1) || presign_expiry > kLongestPresignExpiry) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--s3-presign-expiry must be from 1s to ", absl::FormatDuration(kLongestPresignExpiry),
          ", is ", absl::FormatDuration(presign_expiry)));
    }
    s3.upload_urls = presign == "all";
    if (presign != "off") s3.url_lifetime = absl::Floor(presign_expiry, absl::Seconds(1));
    s3.s3.endpoint = endpoint;
    s3.s3.region = region;
    ASSIGN_OR_RETURN(s3.s3.credentials, LoadAwsCredentials(credentials_file));
    options.artifacts_s3 = std::move(s3);
    return absl::OkStatus();
  }
};

// The soft limit, often 1,024, is for programs that use select(2).
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

int Main(int argc, char** argv) {
  RaiseDescriptorLimit();
  // Debian's Abseil is built with its search for lock cycles on: at every lock of every thread,
  // gRPC's included, under one global lock. The thread sanitizer searches too, in the tests.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  ServerOptions options;
  options.data_dir = DefaultDataDir();
  options.version = QPRUNER_VERSION;
  const fs::path bin = fs::read_symlink("/proc/self/exe").parent_path();
  options.worker_program = (bin / "qpruner-worker").string();
  std::string port_file;
  std::string log_level = "info";
  std::string store = "sqlite";
  PostgresOptions postgres;
  std::string postgres_password_file;
  S3Flags s3;

  CLI::App app("Queues compressions of language models and hands their tasks to workers.",
               "qpruner-server");
  app.add_option("--listen", options.listen,
                 "HOST:PORT (port 0: any free one) or unix:PATH of the API")
      ->capture_default_str();
  app.add_option("--tls-cert", options.tls.certificate,
                 "PEM certificate chain of this server; read again when it changes");
  app.add_option("--tls-key", options.tls.key, "PEM key of --tls-cert");
  app.add_option("--tls-client-ca", options.tls.client_ca,
                 "PEM authorities that clients and workers must show a certificate of");
  app.add_option("--token-file", options.token_file,
                 "JSON file of the tokens that callers need (see new-token); read again when it "
                 "changes");
  app.add_option(
      "--quotas-file", options.quota_file,
      "JSON file of projects' weights and quotas (docs/operations.md); read again when it "
      "changes");
  app.add_flag("--insecure", options.insecure,
               "Listen beyond loopback without TLS or without tokens, and with --metrics-listen: "
               "for private networks");
  app.add_option("--max-connections", options.max_connections,
                 "TCP connections at a time; fewer where the limit of open files is low")
      ->check(CLI::Range(16, 1'000'000))
      ->capture_default_str();
  app.add_option("--data-dir", options.data_dir, "Folder of jobs and artifacts")
      ->capture_default_str();
  app.add_option("--artifacts-dir", options.artifacts_dir,
                 "Folder of artifacts; servers on one database share it (default: in --data-dir)");
  app.add_option(
      "--artifacts-url", s3.url,
      "Keep artifacts in an S3 storage: s3://bucket/prefix; servers on one database share "
      "it");
  app.add_option("--s3-endpoint", s3.endpoint,
                 "Where the S3 storage is, https://HOST[:PORT] (default: Amazon's, of the region)");
  app.add_option("--s3-region", s3.region, "Region of the S3 storage")->capture_default_str();
  app.add_option("--s3-credentials-file", s3.credentials_file,
                 "AWS credentials file with a section [default] (or set AWS_ACCESS_KEY_ID and "
                 "AWS_SECRET_ACCESS_KEY)");
  app.add_option(
         "--s3-presign", s3.presign,
         "downloads: workers and clients read large artifacts from the S3 storage itself, by URLs "
         "that live for --s3-presign-expiry; all: workers store them there too. Where they cannot, "
         "bytes go through the server")
      ->check(CLI::IsMember({"off", "downloads", "all"}))
      ->capture_default_str();
  app.add_option("--store", store,
                 "sqlite: in --data-dir, for one server; postgres: a database that servers share")
      ->check(CLI::IsMember({"sqlite", "postgres"}))
      ->capture_default_str();
  app.add_option("--postgres-url", postgres.url,
                 "postgresql://USER@HOST/DATABASE?sslmode=verify-full, without the password")
      ->envname("QPRUNER_POSTGRES_URL");
  app.add_option("--postgres-password-file", postgres_password_file,
                 absl::StrCat("File that holds the password (or set ", kPasswordVariable, ")"));
  app.add_option("--postgres-connections", postgres.connection_count,
                 "Connections of this server to the database, and one more that listens")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--local-workers", options.local_workers, "Workers to run on this machine")
      ->capture_default_str();
  app.add_option("--worker-program", options.worker_program, "The local workers' program")
      ->capture_default_str();
  app.add_option(
      "--worker-arg", options.worker_arguments,
      "Further argument of the local workers' program, as --worker-arg=--hub=off; may be "
      "repeated");
  const CLI::Option* model_roots =
      app.add_option("--model-root", options.validation.model_roots,
                     "file:// models and texts must lie below this folder; may be repeated. "
                     "Default: /, and with --token-file none")
          ->default_str("");
  const auto add_duration = [&app](const char* name, absl::Duration& value, const char* help) {
    app.add_option_function<std::string>(
           name,
           [name, &value](const std::string& text) {
             if (!absl::ParseDuration(text, &value)) {
               throw CLI::ValidationError(name, "must be a time such as 15s or 500ms");
             }
           },
           help)
        ->type_name("TIME")
        ->default_str(absl::FormatDuration(value));
  };
  add_duration("--lease-duration", options.queue.lease_duration,
               "A worker that is silent for so long loses its task");
  add_duration("--heartbeat-interval", options.queue.heartbeat_interval,
               "How often a worker tells that it is alive, and hears of a cancelled job");
  add_duration("--retry-backoff", options.queue.retry_backoff,
               "A failed attempt waits so long before the next, doubled each time");
  add_duration("--s3-presign-expiry", s3.presign_expiry,
               "How long a URL of --s3-presign can be used, 1s to 1h");
  const auto add_retention = [&app](const char* name, absl::Duration& value, const char* help) {
    app.add_option_function<std::string>(
           name,
           [&value](const std::string& text) {
             const absl::StatusOr<absl::Duration> parsed = ParseRetention(text);
             if (!parsed.ok()) throw CLI::ValidationError(std::string(parsed.status().message()));
             value = *parsed;
           },
           help)
        ->type_name("TIME")
        ->default_str(value == absl::InfiniteDuration() ? "forever" : absl::FormatDuration(value));
  };
  add_retention("--keep-finished-jobs", options.retention.keep_finished_jobs,
                "Delete finished jobs, with their artifacts, so long after their end (30d, 12h)");
  add_retention("--keep-intermediate", options.retention.keep_intermediates,
                "Remove what the stages of a finished job handed to each other (prepared/) so long "
                "after its end");
  add_retention("--keep-unreferenced", options.retention.keep_unreferenced,
                "Collect artifacts that no job lists once they are so old");
  add_retention("--sweep-interval", options.retention.sweep_interval,
                "Look so often for what the options above remove");
  app.add_option("--metrics-listen", options.metrics_listen,
                 "HOST:PORT of /metrics for Prometheus, or off")
      ->capture_default_str();
  app.add_flag("--insecure-metrics", options.insecure_metrics,
               "Let --metrics-listen be beyond loopback: whoever reaches it sees the metrics");
  app.add_option("--port-file", port_file,
                 "Write the address to this file once the server listens");
  app.add_option("--log-level", log_level, "debug, info, warning, error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  app.set_version_flag("--version", QPRUNER_VERSION);

  NewTokenOptions token;
  CLI::App* new_token = app.add_subcommand(
      "new-token", "Add a token to a file for --token-file, and print it: it is not shown again");
  new_token->add_option("FILE", token.file, "The file; begun if it is not there")->required();
  new_token->add_option("--id", token.id, "Names the bearer in the audit log")->required();
  new_token->add_option("--role", token.role, "client, worker or admin")->required();
  new_token->add_option("--project", token.projects, "A client's project; may be repeated");
  new_token->add_option("--worker", token.workers,
                        "A worker's name, or a beginning of names and *; may be repeated");
  new_token->add_option("--expires", token.expires, "2027-01-31 or RFC 3339; default: never");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kBadSetting;
  }
  if (new_token->parsed()) return PrintNewToken(token);

  // Logs go to standard error: standard output carries the address alone.
  spdlog::set_default_logger(spdlog::stderr_color_mt("server"));
  spdlog::set_formatter(OneLineFormatter("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v"));
  spdlog::set_level(spdlog::level::from_str(log_level));

  // Before any thread starts, so that only sigwait below sees them. A reader that goes away must
  // not end the server.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  // Clients of different projects must not read each other's files, nor the server's.
  if (!options.token_file.empty() && model_roots->count() == 0) {
    options.validation.model_roots.clear();
  }
  absl::StatusOr<std::string> password = ReadPostgresPassword(postgres_password_file);
  if (!password.ok()) {
    spdlog::error("--postgres-password-file: {}", std::string(password.status().message()));
    return kBadSetting;
  }
  if (store == "postgres") {
    postgres.password = *std::move(password);
    options.postgres = std::move(postgres);
  } else if (!postgres.url.empty()) {
    spdlog::error("--postgres-url is given, but --store is not postgres");
    return kBadSetting;
  }
  if (absl::Status configured = s3.Configure(options); !configured.ok()) {
    spdlog::error("{}", std::string(configured.message()));
    return kBadSetting;
  }
  auto server = Server::Start(std::move(options), RealClock(), SystemIdGenerator());
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    return absl::IsInvalidArgument(server.status()) ? kBadSetting : 1;
  }
  if (!port_file.empty()) {
    if (absl::Status status = WriteFileDurably(port_file, (*server)->address() + "\n");
        !status.ok()) {
      spdlog::error("{}", std::string(status.message()));
      return 1;
    }
  }
  printf("listening on %s\n", (*server)->address().c_str());
  fflush(stdout);
  spdlog::info("qpruner-server {} listens on {}", QPRUNER_VERSION, (*server)->address());
  if (const int port = (*server)->metrics_port()) spdlog::info("metrics on port {}", port);

  int signal_number = 0;
  sigwait(&signals, &signal_number);
  spdlog::info("stopping after signal {}; a second one ends at once", signal_number);
  std::thread([signals] {
    int again = 0;
    sigwait(&signals, &again);
    _exit(128 + again);
  }).detach();
  (*server)->Shutdown();
  spdlog::info("stopped");
  return 0;
}

}  // namespace
}  // namespace qpruner::server

int main(int argc, char** argv) { return qpruner::server::Main(argc, argv); }
