// A server, its workers with their engines, and the cables between them, to be broken one by one.
#ifndef QPRUNER_TESTS_FAULTS_FLEET_H_
#define QPRUNER_TESTS_FAULTS_FLEET_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/child_process.h"
#include "qpruner/internal/v1/worker_service.grpc.pb.h"
#include "qpruner/v1/job_service.grpc.pb.h"
#include "server/testing/postgres_cluster.h"
#include "tests/faults/tcp_proxy.h"
#include "tests/testing/server_process.h"
#include "tests/testing/temp_folder.h"

namespace qpruner {

// A process group's wall clock (clock_shift_preload.cc).
class ShiftedClock {
 public:
  explicit ShiftedClock(const std::string& path);
  ~ShiftedClock();
  void Set(absl::Duration shift);
  // What its processes need in their environment.
  std::vector<std::string> Environment() const;

 private:
  const std::string path_;
  volatile int64_t* shift_ = nullptr;
};

// Used by one thread, which must live as long as it: its processes end with that thread.
class Fleet {
 public:
  struct Options {
    // Jobs in a PostgreSQL, behind a cable, instead of SQLite.
    bool postgres = false;
    int workers = 3;
    // The engine's program, and how long a task takes if it is arithmetic.
    std::string engine;
    int task_milliseconds = 60;
    absl::Duration lease_duration = absl::Seconds(2);
    // The server's data in a file system of its own, of this size, that can be filled. 0: not.
    int64_t disk_bytes = 0;
  };
  static absl::StatusOr<std::unique_ptr<Fleet>> Start(Options options);
  ~Fleet();

  ServerProcess& server() { return *server_; }
  v1::JobService::Stub& jobs() { return *jobs_; }
  // Not over the workers' cable.
  internal::v1::WorkerService::Stub& worker_calls() { return *worker_calls_; }
  const Options& options() const { return options_; }

  TcpProxy& workers_cable() { return *workers_cable_; }
  // Null with SQLite.
  TcpProxy* database_cable() { return database_cable_.get(); }
  server::PostgresCluster* database() { return database_.get(); }
  ShiftedClock& server_clock() { return *server_clock_; }
  ShiftedClock& workers_clock() { return *workers_clock_; }

  size_t worker_count() const { return workers_.size(); }
  // 0: it is being started again.
  pid_t WorkerPid(size_t worker) const;
  std::string WorkerFolder(size_t worker) const;
  // Engines of all workers, killed ones left out.
  std::vector<pid_t> Engines() const;

  // Starts workers again that have ended, and says how many. Call it often.
  int Supervise();
  // Starts the server again if it is gone. UNAVAILABLE: it does not start now.
  absl::Status EnsureServer();

  // False where there is no file system of its own.
  bool has_own_disk() const { return has_own_disk_; }
  // Until FreeDisk no byte fits on it.
  void FillDisk();
  void FreeDisk();

  // SIGTERM to all. What is left of them is an error.
  absl::Status Stop();
  std::string LogTails() const;
  std::string data_dir() const { return folder_.path() + "/data"; }

 private:
  struct Worker {
    std::string name;
    std::unique_ptr<ChildProcess> process;
  };
  explicit Fleet(Options options) : options_(std::move(options)) {}
  absl::Status StartWorker(size_t worker);

  const Options options_;
  TempFolder folder_;
  bool has_own_disk_ = false;
  std::unique_ptr<server::PostgresCluster> database_;
  std::unique_ptr<TcpProxy> database_cable_;
  std::unique_ptr<ShiftedClock> server_clock_;
  std::unique_ptr<ShiftedClock> workers_clock_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<TcpProxy> workers_cable_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<internal::v1::WorkerService::Stub> worker_calls_;
  std::vector<Worker> workers_;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_FAULTS_FLEET_H_
