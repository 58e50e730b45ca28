// Workers that the server starts on its own machine, so that one command is a whole service.
#ifndef QPRUNER_SERVER_LOCAL_WORKERS_H_
#define QPRUNER_SERVER_LOCAL_WORKERS_H_

#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace qpruner::server {

// Starts `count` qpruner-worker processes and starts each again, with back-off, when it ends. One
// thread does all of it: it must live as long as the workers, because the kernel ends them when it
// does (so they also go when the server is killed). Thread-safe.
class LocalWorkers {
 public:
  struct Options {
    int count = 1;
    // The worker's program.
    std::string program;
    // Address of this server, as a worker dials it.
    std::string server_address;
    // Worker N works in {data_dir}/N.
    std::string data_dir;
    // File with the token of worker `number` (from 1); empty: they need none.
    std::vector<std::string> token_files;
    // Further arguments of the program.
    std::vector<std::string> arguments;
    // CPU threads of each engine, and processors of its own: no two share one while there are
    // enough.
    int threads = 1;
    // A worker has so long to hand its task back.
    absl::Duration stop_grace = absl::Seconds(5);
  };
  // Name of worker `number`, from 1.
  static std::string NameOf(int number);
  explicit LocalWorkers(Options options);
  // Stops the workers.
  ~LocalWorkers();
  LocalWorkers(const LocalWorkers&) = delete;
  LocalWorkers& operator=(const LocalWorkers&) = delete;

  void Stop();

 private:
  void Supervise();

  const Options options_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_LOCAL_WORKERS_H_
