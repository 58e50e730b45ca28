// A PostgreSQL server of the test's own: a fresh cluster in a temporary folder, on a Unix socket
// that nobody else knows. No other cluster of the machine is touched.
#ifndef QPRUNER_SERVER_TESTING_POSTGRES_CLUSTER_H_
#define QPRUNER_SERVER_TESTING_POSTGRES_CLUSTER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/child_process.h"

namespace qpruner::server {

class PostgresCluster {
 public:
  // NOT_FOUND, with the reason: PostgreSQL is not installed (or not where QPRUNER_POSTGRES_BIN or
  // /usr/lib/postgresql says), or cannot be run here. PostgreSQL refuses to run as root: then it
  // runs as user postgres or nobody.
  // `durable`: it syncs every commit. Otherwise a killed process loses nothing that it has written,
  // but a killed machine would.
  static absl::StatusOr<std::unique_ptr<PostgresCluster>> Start(bool durable = false);
  // The one of all tests of a program, which ends with it. Null, with the reason printed, where
  // PostgreSQL cannot be run.
  static PostgresCluster* Shared();
  // Ends the server and removes the folder.
  ~PostgresCluster();
  PostgresCluster(const PostgresCluster&) = delete;
  PostgresCluster& operator=(const PostgresCluster&) = delete;

  // The URL of a new, empty database.
  std::string NewDatabase();
  // Runs statements of the test's on a database, as its superuser.
  absl::Status Execute(const std::string& url, const std::string& sql);
  // Runs one of PostgreSQL's programs ("pg_dump") to its end. INTERNAL, with its output: it failed.
  absl::Status RunProgram(const std::string& name, std::vector<std::string> arguments);
  const std::string& folder() const { return folder_; }
  // Of the database's first process, the parent of the others.
  pid_t pid() const { return postgres_->pid(); }
  // Ends every session at once, as a crash does, and recovers (pg_ctl restart -m immediate).
  absl::Status Restart();
  // The same in two steps.
  void Kill();
  absl::Status StartServer();

 private:
  explicit PostgresCluster(bool durable) : durable_(durable) {}
  std::vector<std::string> AsServerUser(std::vector<std::string> argv) const;

  const bool durable_;
  std::string bin_;
  std::string folder_;
  std::vector<std::string> user_prefix_;
  std::unique_ptr<ChildProcess> postgres_;
  int database_count_ = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_POSTGRES_CLUSTER_H_
