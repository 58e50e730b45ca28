// A real qpruner-server that can be killed and started again on the same folder and address.
#ifndef QPRUNER_TESTS_TESTING_SERVER_PROCESS_H_
#define QPRUNER_TESTS_TESTING_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/child_process.h"
#include "grpcpp/channel.h"

namespace qpruner {

// The built program of this name: in $QPRUNER_BIN_DIR, else in build/release/bin.
std::string BuiltProgram(const std::string& name);

// A TCP port of 127.0.0.1 that is free now.
int FreePort();

// Not thread-safe, but for the constant address and NewChannel. The thread that starts the server
// must live as long as it.
class ServerProcess {
 public:
  struct Options {
    // Holds data/ (the server's --data-dir) and server.log, over all starts.
    std::string folder;
    // HOST:PORT or unix:PATH.
    std::string address;
    // Beside --listen, --data-dir and --metrics-listen=off.
    std::vector<std::string> arguments;
    // "NAME=value".
    std::vector<std::string> environment;
  };
  explicit ServerProcess(Options options) : options_(std::move(options)) {}

  // Returns when it answers. UNAVAILABLE, with the end of its log: it does not.
  absl::Status Start(absl::Duration limit = absl::Seconds(60));
  // SIGKILL to it and its children; reaps.
  void Kill();
  // SIGTERM; the wait status. -1: it had to be killed.
  int Stop(absl::Duration limit = absl::Seconds(30));

  bool running() const { return process_ && !process_->Poll(); }
  // 0: it was not started, or killed.
  pid_t pid() const { return process_ ? process_->pid() : 0; }
  const std::string& address() const { return options_.address; }
  std::string data_dir() const { return options_.folder + "/data"; }
  std::string log_path() const { return options_.folder + "/server.log"; }
  // The last bytes of its log.
  std::string LogTail(size_t bytes = 4000) const;

  // A connection of its own, which comes back within half a second of the server.
  std::shared_ptr<grpc::Channel> NewChannel() const;

 private:
  const Options options_;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_SERVER_PROCESS_H_
