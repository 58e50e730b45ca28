#include "tests/testing/server_process.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace qpruner {

std::string BuiltProgram(const std::string& name) {
  const char* folder = getenv("QPRUNER_BIN_DIR");
  return absl::StrCat(folder != nullptr ? folder : "build/release/bin", "/", name);
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    abort();
  }
  close(fd);
  return ntohs(address.sin_port);
}

absl::Status ServerProcess::Start(absl::Duration limit) {
  ChildProcess::Options child{.argv = {BuiltProgram("qpruner-server"), "--listen", options_.address,
                                       "--data-dir", data_dir(), "--metrics-listen", "off"},
                              .parent_death_signal = SIGKILL,
                              .extra_environment = options_.environment,
                              .output_path = log_path()};
  child.argv.insert(child.argv.end(), options_.arguments.begin(), options_.arguments.end());
  process_.reset();
  ASSIGN_OR_RETURN(process_, ChildProcess::Spawn(child));
  const std::shared_ptr<grpc::Channel> channel = NewChannel();
  const absl::Time deadline = absl::Now() + limit;
  while (absl::Now() < deadline && !process_->Poll()) {
    if (channel->WaitForConnected(std::chrono::system_clock::now() +
                                  std::chrono::milliseconds(100))) {
      return absl::OkStatus();
    }
  }
  return absl::UnavailableError(absl::StrCat("the server did not start: ", LogTail()));
}

void ServerProcess::Kill() {
  if (process_) process_->Kill();
  process_.reset();
}

int ServerProcess::Stop(absl::Duration limit) {
  if (!process_) return -1;
  kill(process_->pid(), SIGTERM);
  process_->WaitFor(limit);
  const int status = process_->Poll().value_or(-1);
  Kill();
  return status;
}

std::string ServerProcess::LogTail(size_t bytes) const {
  std::ifstream file(log_path());
  const std::string log((std::istreambuf_iterator<char>(file)), {});
  return log.substr(log.size() - std::min(log.size(), bytes));
}

std::shared_ptr<grpc::Channel> ServerProcess::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  return grpc::CreateCustomChannel(options_.address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace qpruner
