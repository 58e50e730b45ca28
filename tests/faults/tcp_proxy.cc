#include "tests/faults/tcp_proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <utility>

namespace qpruner {
namespace {

// Of one direction, waiting for the other side to read.
constexpr size_t kMaxBuffered = 1 << 20;

// Closes with a reset instead of a polite end.
void Reset(int fd) {
  const linger now{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  close(fd);
}

int ConnectUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return -1;
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    close(fd);
    return -1;
  }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

}  // namespace

TcpProxy::TcpProxy(std::string upstream_path) : upstream_path_(std::move(upstream_path)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  wake_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener_, 64) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    abort();
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  stopping_ = true;
  Wake();
  thread_.join();
  close(listener_);
  close(wake_fd_);
}

void TcpProxy::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t put = write(wake_fd_, &one, sizeof one);
}

void TcpProxy::SetMode(Mode mode) {
  mode_ = mode;
  Wake();
}

void TcpProxy::ResetOnce() {
  reset_once_ = true;
  Wake();
}

void TcpProxy::ResetAll() {
  for (const Connection& connection : connections_) {
    Reset(connection.client);
    if (connection.server >= 0) close(connection.server);
  }
  connections_.clear();
}

void TcpProxy::Accept() {
  const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (client < 0) return;
  if (mode_ == Mode::kCut) return Reset(client);
  const int no_delay = 1;
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay);
  const int server = ConnectUnix(upstream_path_);
  if (server < 0) return Reset(client);
  connections_.push_back({.client = client, .server = server});
}

bool TcpProxy::Move(int from, int to, short events, std::string& buffer) {
  if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && buffer.size() < kMaxBuffered) {
    char bytes[65536];
    const ssize_t got = read(from, bytes, sizeof bytes);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (got > 0) buffer.append(bytes, static_cast<size_t>(got));
  }
  if (buffer.empty()) return true;
  const ssize_t put = send(to, buffer.data(), buffer.size(), MSG_NOSIGNAL);
  if (put < 0) return errno == EAGAIN || errno == EINTR;
  buffer.erase(0, static_cast<size_t>(put));
  return true;
}

void TcpProxy::Run() {
  std::vector<pollfd> fds;
  while (!stopping_) {
    if (mode_ == Mode::kCut || reset_once_.exchange(false)) ResetAll();
    fds.assign({{wake_fd_, POLLIN, 0}, {listener_, POLLIN, 0}});
    const bool stalled = mode_ == Mode::kStall;
    if (!stalled) {
      for (const Connection& connection : connections_) {
        const auto wanted = [](const std::string& in, const std::string& out) {
          return static_cast<short>((in.size() < kMaxBuffered ? POLLIN : 0) |
                                    (out.empty() ? 0 : POLLOUT));
        };
        fds.push_back({connection.client, wanted(connection.to_server, connection.to_client), 0});
        fds.push_back({connection.server, wanted(connection.to_client, connection.to_server), 0});
      }
    }
    if (poll(fds.data(), fds.size(), 1000) <= 0) continue;
    if (fds[0].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t got = read(wake_fd_, &count, sizeof count);
    }
    if (!stalled && mode_ != Mode::kCut) {
      size_t at = 2;
      for (auto it = connections_.begin(); it != connections_.end(); at += 2) {
        const bool alive = Move(it->client, it->server, fds[at].revents, it->to_server) &&
                           Move(it->server, it->client, fds[at + 1].revents, it->to_client);
        if (alive) {
          ++it;
          continue;
        }
        close(it->client);
        close(it->server);
        it = connections_.erase(it);
      }
    }
    if (fds[1].revents != 0) Accept();
  }
  ResetAll();
}

}  // namespace qpruner
