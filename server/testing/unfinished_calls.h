// A peer that begins calls and never ends them: gRPC's own client cannot be made to.
#ifndef QPRUNER_SERVER_TESTING_UNFINISHED_CALLS_H_
#define QPRUNER_SERVER_TESTING_UNFINISHED_CALLS_H_

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "tests/testing/loopback_connection.h"

namespace qpruner::server {

// One connection of HTTP/2 (RFC 9113) without TLS, which speaks no more of the protocol than it
// takes to be let in: it keeps to the server's windows and answers its pings. Used by one thread.
class UnfinishedCalls {
 public:
  // To 127.0.0.1 at the port of `address` ("host:port").
  explicit UnfinishedCalls(const std::string& address) : socket_(ConnectToLoopback(address)) {
    out_ = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    AddFrame(kSettings, 0, 0, "");
  }
  UnfinishedCalls(const UnfinishedCalls&) = delete;
  UnfinishedCalls& operator=(const UnfinishedCalls&) = delete;
  ~UnfinishedCalls() { close(socket_); }

  // Begins a call of `method` ("/package.Service/Method") whose message shall have `size` bytes, of
  // which all but the last are sent as fast as the server takes them.
  void Begin(std::string_view method, uint32_t size) {
    std::string headers;
    const auto add = [&](std::string_view name, std::string_view value) {
      // A literal without indexing (RFC 7541, 6.2.2); lengths below 127.
      headers += '\0';
      headers += static_cast<char>(name.size());
      headers += name;
      headers += static_cast<char>(value.size());
      headers += value;
    };
    add(":method", "POST");
    add(":scheme", "http");
    add(":path", method);
    add(":authority", "localhost");
    add("te", "trailers");
    add("content-type", "application/grpc");
    const uint32_t id = next_id_;
    next_id_ += 2;
    AddFrame(kHeaders, kEndHeaders, id, headers);
    Call& call = calls_[id];
    call.window = initial_window_;
    call.head.assign(1, '\0');
    call.head.append(BigEndian(size));
    call.left = size - 1;
  }

  // Sends and reads what it can without waiting for more than `patience`. False: nothing has moved
  // in that time, or the server has closed the connection.
  bool Go(absl::Duration patience) {
    FillOut();
    pollfd wait{.fd = socket_,
                .events = static_cast<short>(POLLIN | (out_.empty() ? 0 : POLLOUT)),
                .revents = 0};
    if (closed_ || poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(patience))) <= 0) {
      return false;
    }
    if ((wait.revents & POLLOUT) != 0) {
      const ssize_t sent = send(socket_, out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) out_.erase(0, static_cast<size_t>(sent));
      if (sent < 0 && errno != EAGAIN) closed_ = true;
    }
    if ((wait.revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
      char bytes[16 << 10];
      const ssize_t size = recv(socket_, bytes, sizeof bytes, MSG_DONTWAIT);
      if (size > 0) in_.append(bytes, static_cast<size_t>(size));
      if (size == 0 || (size < 0 && errno != EAGAIN)) closed_ = true;
      while (ReadFrame()) {
      }
    }
    return !closed_;
  }

  // Bytes of messages that were sent, and calls that the server has ended.
  int64_t sent_bytes() const { return sent_bytes_; }
  int ended_calls() const { return ended_calls_; }

 private:
  enum FrameType : uint8_t {
    kData = 0,
    kHeaders = 1,
    kResetStream = 3,
    kSettings = 4,
    kPing = 6,
    kWindowUpdate = 8,
  };
  static constexpr uint8_t kEndHeaders = 4;
  static constexpr uint8_t kAck = 1;
  static constexpr int64_t kMaxFrame = 16 << 10;

  struct Call {
    int64_t window = 0;
    std::string head;  // Of the message, as long as it was not sent.
    int64_t left = 0;  // Bytes behind it that are to be sent.
  };

  static std::string BigEndian(uint32_t value) {
    return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
            static_cast<char>(value >> 8), static_cast<char>(value)};
  }
  static uint32_t FromBigEndian(std::string_view bytes) {
    uint32_t value = 0;
    for (const char byte : bytes.substr(0, 4)) value = value << 8 | static_cast<uint8_t>(byte);
    return value;
  }

  void AddFrame(FrameType type, uint8_t flags, uint32_t stream, std::string_view payload) {
    out_ += BigEndian(static_cast<uint32_t>(payload.size())).substr(1);
    out_ += static_cast<char>(type);
    out_ += static_cast<char>(flags);
    out_ += BigEndian(stream);
    out_ += payload;
  }

  void FillOut() {
    for (auto& [id, call] : calls_) {
      while (out_.size() < kMaxFrame && call.left > 0) {
        const int64_t size = std::min(
            {kMaxFrame, window_, call.window, static_cast<int64_t>(call.head.size()) + call.left});
        if (size < 5) break;
        std::string payload = call.head;
        call.left -= size - static_cast<int64_t>(call.head.size());
        call.head.clear();
        payload.resize(static_cast<size_t>(size), 'x');
        AddFrame(kData, 0, id, payload);
        window_ -= size;
        call.window -= size;
        sent_bytes_ += size;
      }
    }
  }

  // The next whole frame of what was read.
  bool ReadFrame() {
    if (in_.size() < 9) return false;
    const size_t size = FromBigEndian(std::string_view(in_).substr(0, 3));
    if (in_.size() < 9 + size) return false;
    const auto type = static_cast<FrameType>(in_[3]);
    const auto flags = static_cast<uint8_t>(in_[4]);
    const uint32_t stream = FromBigEndian(std::string_view(in_).substr(5)) & 0x7FFFFFFF;
    const std::string payload = in_.substr(9, size);
    in_.erase(0, 9 + size);
    switch (type) {
      case kSettings:
        if ((flags & kAck) != 0) break;
        for (size_t at = 0; at + 6 <= payload.size(); at += 6) {
          if (payload[at] == 0 && payload[at + 1] == 4) {  // SETTINGS_INITIAL_WINDOW_SIZE
            const int64_t window = FromBigEndian(std::string_view(payload).substr(at + 2));
            for (auto& [id, call] : calls_) call.window += window - initial_window_;
            initial_window_ = window;
          }
        }
        AddFrame(kSettings, kAck, 0, "");
        break;
      case kPing:
        if ((flags & kAck) == 0) AddFrame(kPing, kAck, 0, payload);
        break;
      case kWindowUpdate:
        if (stream == 0) {
          window_ += FromBigEndian(payload);
        } else if (const auto call = calls_.find(stream); call != calls_.end()) {
          call->second.window += FromBigEndian(payload);
        }
        break;
      case kHeaders:  // Of an answer that has no message, so its end too.
      case kResetStream:
        ended_calls_ += static_cast<int>(calls_.erase(stream));
        break;
      default:
        break;
    }
    return true;
  }

  const int socket_;
  bool closed_ = false;
  std::string in_, out_;
  std::map<uint32_t, Call> calls_;
  uint32_t next_id_ = 1;
  int64_t window_ = 65'535, initial_window_ = 65'535;  // RFC 9113, 6.9.2
  int64_t sent_bytes_ = 0;
  int ended_calls_ = 0;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_UNFINISHED_CALLS_H_
