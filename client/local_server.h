// A whole service for one command: qpruner-server with one local worker, on a Unix socket.
#ifndef QPRUNER_CLIENT_LOCAL_SERVER_H_
#define QPRUNER_CLIENT_LOCAL_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/child_process.h"

namespace qpruner {

// Not thread-safe. Destroying it stops the server: SIGTERM, then SIGKILL to its process group.
class LocalServer {
 public:
  struct Options {
    // The program; empty: "qpruner-server" beside this one.
    std::string program;
    // Jobs, artifacts and the server's log. Empty: a folder that is removed at the end.
    std::string data_dir;
    int workers = 1;
    absl::Duration start_timeout = absl::Seconds(30);
    // Asked a few times a second while it starts; true gives up.
    std::function<bool()> interrupted;
  };

  // Returns once the server answers and a worker has registered. NOT_FOUND: no such program.
  // UNAVAILABLE: it ended or did not answer in time; the message has the end of its log. CANCELLED:
  // interrupted. Call from the thread that lives as long as the server shall.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const Options& options);
  ~LocalServer();

  // For OpenChannel.
  const std::string& address() const { return address_; }
  const std::string& log_path() const { return log_path_; }
  // The last lines of the log.
  std::string LogTail() const;
  // False once the server has ended by itself.
  bool IsRunning() { return !process_->Poll().has_value(); }
  // SIGTERM, and SIGKILL after `grace`.
  void Stop(absl::Duration grace) { process_->Terminate(grace); }

 private:
  LocalServer() = default;
  absl::Status WaitUntilReady(const Options& options);

  std::string scratch_;
  std::string address_;
  std::string log_path_;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_LOCAL_SERVER_H_
