#include "server/testing/postgres_cluster.h"

#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"

namespace qpruner::server {
namespace {

namespace fs = std::filesystem;

// The newest installed version's programs; empty if there are none.
std::string FindPrograms() {
  if (const char* chosen = getenv("QPRUNER_POSTGRES_BIN")) return chosen;
  std::string found;
  int newest = 0;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("/usr/lib/postgresql", ignored)) {
    const int version = atoi(entry.path().filename().c_str());
    const fs::path bin = entry.path() / "bin";
    if (version > newest && fs::exists(bin / "initdb") && fs::exists(bin / "postgres")) {
      newest = version;
      found = bin;
    }
  }
  return found;
}

std::string Contents(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

}  // namespace

std::vector<std::string> PostgresCluster::AsServerUser(std::vector<std::string> argv) const {
  argv.insert(argv.begin(), user_prefix_.begin(), user_prefix_.end());
  return argv;
}

PostgresCluster* PostgresCluster::Shared() {
  static const std::unique_ptr<PostgresCluster> cluster = []() -> std::unique_ptr<PostgresCluster> {
    auto started = Start();
    if (started.ok()) return *std::move(started);
    printf("SKIPPED: %s\n", std::string(started.status().message()).c_str());
    return nullptr;
  }();
  return cluster.get();
}

absl::StatusOr<std::unique_ptr<PostgresCluster>> PostgresCluster::Start(bool durable) {
  std::unique_ptr<PostgresCluster> cluster(new PostgresCluster(durable));
  cluster->bin_ = FindPrograms();
  if (cluster->bin_.empty()) {
    return absl::NotFoundError(
        "PostgreSQL is not installed (scripts/install_dependencies test): no "
        "/usr/lib/postgresql/*/bin/initdb");
  }
  // Short: a socket's path has room for 107 characters.
  std::string pattern = "/tmp/qpruner-pg-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) return absl::NotFoundError("/tmp cannot be written to");
  cluster->folder_ = pattern;
  if (getuid() == 0) {
    const passwd* user = getpwnam("postgres");
    if (user == nullptr) user = getpwnam("nobody");
    if (user == nullptr || !fs::exists("/usr/bin/setpriv")) {
      return absl::NotFoundError(
          "PostgreSQL does not run as root, and there is no user postgres or nobody, or no "
          "setpriv");
    }
    if (chown(pattern.c_str(), user->pw_uid, user->pw_gid) != 0) {
      return absl::NotFoundError("the temporary folder cannot be given to another user");
    }
    cluster->user_prefix_ = {"/usr/bin/setpriv", absl::StrCat("--reuid=", user->pw_uid),
                             absl::StrCat("--regid=", user->pw_gid), "--clear-groups",
                             // A change of user drops the signal that ChildProcess asks for.
                             "--pdeathsig=QUIT", "--"};
  }
  if (const absl::Status made =
          cluster->RunProgram("initdb", {"-D", cluster->folder_ + "/data", "-U", "qpruner", "-A",
                                         "trust", "-E", "UTF8", "--locale=C", "--no-sync"});
      !made.ok()) {
    return absl::NotFoundError(std::string(made.message()));
  }
  RETURN_IF_ERROR(cluster->StartServer());
  return cluster;
}

absl::Status PostgresCluster::RunProgram(const std::string& name,
                                         std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), bin_ + "/" + name);
  const std::string log = absl::StrCat(folder_, "/", name, ".log");
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ChildProcess> program,
      ChildProcess::Spawn({.argv = AsServerUser(std::move(arguments)), .output_path = log}));
  if (program->WaitFor(absl::Seconds(120)) && program->Poll() == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(name, " failed: ", Contents(log)));
}

absl::Status PostgresCluster::StartServer() {
  const std::string log = folder_ + "/server.log";
  ASSIGN_OR_RETURN(
      postgres_,
      ChildProcess::Spawn(
          {.argv = AsServerUser({bin_ + "/postgres", "-D", folder_ + "/data", "-k", folder_, "-c",
                                 "listen_addresses=", "-c", durable_ ? "fsync=on" : "fsync=off",
                                 "-c", "max_connections=200"}),
           .parent_death_signal = SIGQUIT,
           .output_path = log}));
  const std::string url = absl::StrCat("postgresql:///postgres?user=qpruner&host=", folder_);
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (PQping(url.c_str()) != PQPING_OK) {
    if (postgres_->Poll() || absl::Now() > deadline) {
      return absl::NotFoundError(absl::StrCat("postgres did not start: ", Contents(log)));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::OkStatus();
}

PostgresCluster::~PostgresCluster() {
  if (postgres_) Kill();
  std::error_code ignored;
  if (!folder_.empty()) fs::remove_all(folder_, ignored);
}

void PostgresCluster::Kill() {
  kill(postgres_->pid(), SIGQUIT);
  if (!postgres_->WaitFor(absl::Seconds(30))) postgres_->Kill();
}

absl::Status PostgresCluster::Restart() {
  Kill();
  return StartServer();
}

std::string PostgresCluster::NewDatabase() {
  const std::string name = absl::StrCat("test", ++database_count_);
  const std::string at = absl::StrCat("?user=qpruner&host=", folder_);
  const absl::Status created =
      Execute("postgresql:///postgres" + at, absl::StrCat("CREATE DATABASE ", name));
  if (!created.ok()) fprintf(stderr, "%s\n", created.ToString().c_str());
  return absl::StrCat("postgresql:///", name, at);
}

absl::Status PostgresCluster::Execute(const std::string& url, const std::string& sql) {
  PGconn* connection = PQconnectdb(url.c_str());
  PGresult* result = PQexec(connection, sql.c_str());
  const ExecStatusType status = PQresultStatus(result);
  const std::string message = PQerrorMessage(connection);
  PQclear(result);
  PQfinish(connection);
  if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) return absl::OkStatus();
  return absl::InternalError(message);
}

}  // namespace qpruner::server
