// The service that a load is put on: a server process, with its database if it has one.
#ifndef QPRUNER_BENCH_LOAD_SERVICE_H_
#define QPRUNER_BENCH_LOAD_SERVICE_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/load/cpu_shares.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/testing/postgres_cluster.h"
#include "tests/testing/server_process.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::load {

enum class Store { kSqlite, kPostgres };

class Service {
 public:
  // In a new folder below `parent`, on the disk that is to be measured. A database of its own,
  // which syncs every commit, lies in /tmp.
  static absl::StatusOr<std::unique_ptr<Service>> Start(Store store, const std::string& parent,
                                                        std::vector<std::string> arguments = {});

  ServerProcess& server() { return *server_; }
  // "SQLite".
  const char* store_name() const { return postgres_ ? "PostgreSQL" : "SQLite"; }
  CpuShares Measure() const;
  // Of `count` connections, in turn: one would make its calls queue for each other.
  std::vector<std::unique_ptr<v1::JobService::Stub>> NewJobStubs(int count) const;

 private:
  explicit Service(const std::string& parent) : folder_(parent) {}

  TempFolder folder_;
  std::unique_ptr<server::PostgresCluster> postgres_;
  std::unique_ptr<ServerProcess> server_;
};

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_SERVICE_H_
