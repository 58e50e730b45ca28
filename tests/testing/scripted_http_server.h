// A small HTTP server on loopback whose answers a test scripts: right, cut off, stalled or wrong.
#ifndef QPRUNER_TESTS_TESTING_SCRIPTED_HTTP_SERVER_H_
#define QPRUNER_TESTS_TESTING_SCRIPTED_HTTP_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"

namespace qpruner {

// Thread-safe. Each connection has a thread; the handler is called by one of them at a time.
class ScriptedHttpServer {
 public:
  struct Request {
    std::string method;
    // Path and query, as sent.
    std::string target;
    // By lower-case name.
    std::map<std::string, std::string> headers;
    std::string body;
  };
  struct Reply {
    int status = 200;
    std::vector<std::pair<std::string, std::string>> headers;
    std::string body;
    // What Content-Length says; default: the body's size.
    std::optional<int64_t> content_length;
    // Bytes of the body that are sent; what follows is `then`. Negative: all.
    int64_t cut_after = -1;
    // After the bytes that are sent: go on, close the connection, or stay silent until the peer
    // hangs up.
    enum class Then { kGoOn, kClose, kStall };
    Then then = Then::kGoOn;
  };
  using Handler = std::function<Reply(const Request&)>;

  // The right answer to "Range: bytes=OFFSET-", of this content.
  static Reply RestOf(const std::string& content, const Request& request) {
    int64_t offset = -1;
    const auto range = request.headers.find("range");
    if (range == request.headers.end() || !absl::StartsWith(range->second, "bytes=") ||
        !absl::EndsWith(range->second, "-") ||
        !absl::SimpleAtoi(range->second.substr(6, range->second.size() - 7), &offset) ||
        offset < 0 || offset >= static_cast<int64_t>(content.size())) {
      return {.status = 416};
    }
    return {.status = 206,
            .headers = {{"Content-Range", absl::StrCat("bytes ", offset, "-", content.size() - 1,
                                                       "/", content.size())}},
            .body = content.substr(static_cast<size_t>(offset))};
  }

  explicit ScriptedHttpServer(Handler handler) : handler_(std::move(handler)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        listen(listener_, 64) != 0) {
      abort();
    }
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~ScriptedHttpServer() {
    stopping_ = true;
    acceptor_.join();
    for (std::thread& connection : connections_) connection.join();
    close(listener_);
  }
  ScriptedHttpServer(const ScriptedHttpServer&) = delete;
  ScriptedHttpServer& operator=(const ScriptedHttpServer&) = delete;

  std::string url() const { return absl::StrCat("http://127.0.0.1:", port_); }
  int port() const { return port_; }
  // "GET /a?b" of every request so far.
  std::vector<std::string> log() {
    absl::MutexLock lock(&mutex_);
    return log_;
  }

 private:
  // Until there is something to read, or the server stops.
  bool AwaitInput(int fd) {
    while (!stopping_) {
      pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
      if (poll(&entry, 1, 20) > 0) return true;
    }
    return false;
  }
  void Accept() {
    while (AwaitInput(listener_)) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      const int no_delay = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof no_delay);
      connections_.emplace_back([this, fd] {
        while (Serve(fd)) {
        }
        close(fd);
      });
    }
  }
  bool ReadMore(int fd, std::string& buffer) {
    char data[64 << 10];
    if (!AwaitInput(fd)) return false;
    const ssize_t got = recv(fd, data, sizeof data, 0);
    if (got <= 0) return false;
    buffer.append(data, static_cast<size_t>(got));
    return true;
  }
  bool SendAll(int fd, absl::string_view data) {
    while (!data.empty()) {
      const ssize_t sent = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      data.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }
  // One request. False: the connection is over.
  bool Serve(int fd) {
    std::string buffer;
    size_t end = std::string::npos;
    while ((end = buffer.find("\r\n\r\n")) == std::string::npos) {
      if (!ReadMore(fd, buffer)) return false;
    }
    Request request;
    const std::vector<std::string> lines = absl::StrSplit(buffer.substr(0, end), "\r\n");
    const std::vector<std::string> first = absl::StrSplit(lines[0], ' ');
    if (first.size() < 2) return false;
    request.method = first[0];
    request.target = first[1];
    for (size_t i = 1; i < lines.size(); ++i) {
      const std::pair<std::string, std::string> parts =
          absl::StrSplit(lines[i], absl::MaxSplits(':', 1));
      request.headers[absl::AsciiStrToLower(parts.first)] =
          std::string(absl::StripAsciiWhitespace(parts.second));
    }
    int64_t length = 0;
    (void)absl::SimpleAtoi(request.headers["content-length"], &length);
    request.body = buffer.substr(end + 4);
    while (static_cast<int64_t>(request.body.size()) < length) {
      if (!ReadMore(fd, request.body)) return false;
    }
    Reply reply;
    {
      absl::MutexLock lock(&mutex_);
      log_.push_back(absl::StrCat(request.method, " ", request.target));
      reply = handler_(request);
    }
    std::string head = absl::StrCat("HTTP/1.1 ", reply.status, " Scripted\r\n");
    for (const auto& [name, value] : reply.headers) {
      absl::StrAppend(&head, name, ": ", value, "\r\n");
    }
    absl::StrAppend(&head, "Content-Length: ",
                    reply.content_length.value_or(static_cast<int64_t>(reply.body.size())),
                    "\r\n\r\n");
    if (!SendAll(fd, head)) return false;
    if (request.method != "HEAD") {
      const size_t sent =
          reply.cut_after < 0
              ? reply.body.size()
              : std::min<size_t>(reply.body.size(), static_cast<size_t>(reply.cut_after));
      if (!SendAll(fd, absl::string_view(reply.body).substr(0, sent))) return false;
    }
    if (reply.then == Reply::Then::kStall) {
      std::string ignored;
      while (ReadMore(fd, ignored)) {
      }
    }
    return reply.then == Reply::Then::kGoOn && reply.cut_after < 0;
  }

  const Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_ = false;
  absl::Mutex mutex_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
  // Of the acceptor's thread, until it has ended.
  std::vector<std::thread> connections_;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_SCRIPTED_HTTP_SERVER_H_
