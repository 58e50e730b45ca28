#include "server/rpc/connection_acceptor.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr int kBacklog = 1024;
// Of the store, the artifacts that are read and written (at most 512 streams), connections to a
// database and a storage, local workers, and what libraries keep.
constexpr int kReservedDescriptors = 1024;
// However few files there may be.
constexpr int kFewestConnections = 16;
// While all places are taken: looks whether one is free again come no closer, so that a flood costs
// little of a core, and lines in the log tell of so long.
constexpr absl::Duration kLookInterval = absl::Milliseconds(50);
constexpr absl::Duration kLogInterval = absl::Seconds(10);

absl::Status CannotListen(const std::string& address, int error) {
  return absl::UnavailableError(
      absl::StrCat("Cannot listen on ", address, ": ", std::strerror(error)));
}

// A listening socket, or -1 with errno set.
int ListenOn(const addrinfo& info, int port) {
  sockaddr_storage to{};
  std::memcpy(&to, info.ai_addr, info.ai_addrlen);
  auto* const v6 = reinterpret_cast<sockaddr_in6*>(&to);
  if (info.ai_family == AF_INET6) {
    v6->sin6_port = htons(static_cast<uint16_t>(port));
  } else {
    reinterpret_cast<sockaddr_in*>(&to)->sin_port = htons(static_cast<uint16_t>(port));
  }
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  const int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (info.ai_family == AF_INET6) {
    // [::] takes IPv4 as well, as gRPC's own listener does.
    const int only = IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr) ? 0 : 1;
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only);
  }
  if (bind(fd, reinterpret_cast<sockaddr*>(&to), info.ai_addrlen) == 0 &&
      listen(fd, kBacklog) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

int PortOf(int fd) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return 0;
  return ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                           : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
}

}  // namespace

int ConnectionsWithin(int wanted, int descriptor_limit) {
  // Where there is room for few files, half of them.
  const int free = std::max(descriptor_limit - kReservedDescriptors, descriptor_limit / 2);
  return std::max(kFewestConnections, std::min(wanted, free));
}

ConnectionAcceptor::ConnectionAcceptor(
    int max_connections, std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> grpc)
    : max_connections_(max_connections),
      grpc_(std::move(grpc)),
      stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

ConnectionAcceptor::~ConnectionAcceptor() {
  Stop();
  if (stop_event_ >= 0) close(stop_event_);
}

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Listen(
    const std::string& address, int max_connections,
    const std::shared_ptr<grpc::ServerCredentials>& credentials, grpc::ServerBuilder& builder) {
  const size_t colon = address.rfind(':');
  absl::string_view host = absl::string_view(address).substr(0, colon);
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port)) {
    return absl::InvalidArgumentError(absl::StrCat("not HOST:PORT: ", address));
  }
  // All addresses of the machine, of both families where it has both.
  const bool any = host == "0.0.0.0" || host == "::" || host == "*";
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(any ? nullptr : std::string(host).c_str(),
                                 std::to_string(port).c_str(), &hints, &found);
  if (failed != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen ", address, ": ", gai_strerror(failed)));
  }
  const absl::Cleanup free = [found] { freeaddrinfo(found); };

  std::unique_ptr<ConnectionAcceptor> acceptor(new ConnectionAcceptor(
      max_connections,
      builder.experimental().AddExternalConnectionAcceptor(
          grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials)));
  if (acceptor->stop_event_ < 0) return CannotListen(address, errno);
  // IPv6 first: where it takes IPv4 as well, the other is not needed.
  std::vector<const addrinfo*> infos;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) infos.push_back(info);
  std::stable_partition(infos.begin(), infos.end(),
                        [](const addrinfo* info) { return info->ai_family == AF_INET6; });
  int error = 0;
  for (const addrinfo* info : infos) {
    if (any && !acceptor->listeners_.empty()) break;
    const int fd = ListenOn(*info, acceptor->listeners_.empty() ? port : acceptor->port_);
    if (fd < 0) {
      // A machine without IPv6 may have the address in its hosts file all the same.
      if (errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT) {
        error = errno;
        continue;
      }
      return CannotListen(address, errno);
    }
    acceptor->listeners_.push_back(fd);
    acceptor->port_ = PortOf(fd);
  }
  if (acceptor->listeners_.empty()) return CannotListen(address, error);
  return acceptor;
}

void ConnectionAcceptor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    (void)!write(stop_event_, &one, sizeof one);
    thread_.join();
  }
  for (const int fd : listeners_) close(fd);
  listeners_.clear();
}

void ConnectionAcceptor::Run() {
  std::vector<pollfd> waits = {{.fd = stop_event_, .events = POLLIN, .revents = 0}};
  for (const int fd : listeners_) waits.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  while (true) {
    if (poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) {
      spdlog::critical("no more connections are accepted: {}", std::strerror(errno));
      return;
    }
    if (waits[0].revents != 0) return;
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents == 0 || AcceptOne(waits[i].fd)) continue;
      // Not a busy loop while the process, or the machine, is out of descriptors.
      poll(waits.data(), 1, static_cast<int>(absl::ToInt64Milliseconds(kLookInterval)));
    }
  }
}

bool ConnectionAcceptor::AcceptOne(int listener) {
  const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) {
    const bool exhausted =
        errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
    if (exhausted) spdlog::error("a connection waits to be accepted: {}", std::strerror(errno));
    // Else it was taken back before it was accepted.
    return !exhausted;
  }
  struct stat status {};
  if (!HasRoom() || fstat(fd, &status) != 0) {
    close(fd);
    return true;
  }
  const int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  handed_.push_back({fd, status.st_ino});
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.listener_fd = listener;
  connection.fd = fd;
  grpc_->HandleNewConnection(&connection);
  return true;
}

bool ConnectionAcceptor::HasRoom() {
  if (static_cast<int>(handed_.size()) < max_connections_) return true;
  const absl::Duration now = RealClock().Monotonic();
  if (now >= next_look_) {
    next_look_ = now + kLookInterval;
    std::erase_if(handed_, [](const Handed& connection) {
      struct stat status {};
      return fstat(connection.fd, &status) != 0 || !S_ISSOCK(status.st_mode) ||
             status.st_ino != connection.inode;
    });
    if (static_cast<int>(handed_.size()) < max_connections_) return true;
  }
  ++refused_;
  if (now >= next_line_) {
    next_line_ = now + kLogInterval;
    spdlog::warn(
        "all {} connections are taken (--max-connections); since the last line {} were "
        "refused",
        max_connections_, std::exchange(refused_, 0));
  }
  return false;
}

}  // namespace qpruner::server
