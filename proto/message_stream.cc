#include "proto/message_stream.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "google/protobuf/io/coded_stream.h"

namespace qpruner {
namespace {

// kMaxMessageBytes fits four bytes of seven bits.
constexpr int kMaxLengthBytes = 4;
constexpr size_t kReadBytes = 256 << 10;

// The machine's clock, which goes on while a wall clock is set back.
class Deadline {
 public:
  explicit Deadline(absl::Duration in) : at_(RealClock().Monotonic() + in) {}
  // For poll.
  int Milliseconds() const {
    if (at_ == absl::InfiniteDuration()) return -1;
    const absl::Duration left = at_ - RealClock().Monotonic();
    return static_cast<int>(std::clamp<int64_t>(
        absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))), 0, 1 << 30));
  }

 private:
  const absl::Duration at_;
};

// OK once there is something to read or room to write, the end included. DEADLINE_EXCEEDED.
absl::Status WaitFor(int fd, short events, const Deadline& deadline) {
  while (true) {
    pollfd entry{.fd = fd, .events = events, .revents = 0};
    const int ready = poll(&entry, 1, deadline.Milliseconds());
    if (ready > 0) return absl::OkStatus();
    if (ready == 0) return absl::DeadlineExceededError("No message came in time");
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "Cannot wait for the stream");
  }
}

// Reads exactly `size` bytes. The bytes read before the end or an error are told by `got`.
absl::Status ReadExactly(int fd, char* data, size_t size, const Deadline& deadline, size_t& got) {
  got = 0;
  while (got < size) {
    if (const absl::Status status = WaitFor(fd, POLLIN, deadline); !status.ok()) {
      if (!absl::IsDeadlineExceeded(status)) return status;
      return absl::DataLossError("The stream stopped inside a message");
    }
    const ssize_t count = recv(fd, data + got, size - got, MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    // A peer that was killed with bytes of ours unread resets the connection: also an end.
    if (count == 0 || (count < 0 && errno == ECONNRESET)) {
      return absl::OutOfRangeError("The peer closed the stream");
    }
    if (count < 0) return absl::ErrnoToStatus(errno, "Cannot read from the stream");
    got += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace

MessageStream::~MessageStream() { close(fd_); }

absl::Status MessageStream::Write(const google::protobuf::MessageLite& message) {
  using google::protobuf::io::CodedOutputStream;
  const size_t size = message.ByteSizeLong();
  if (size > static_cast<size_t>(kMaxMessageBytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("Message too large: ", size, " bytes, at most ", kMaxMessageBytes));
  }
  uint8_t header[kMaxLengthBytes + 1];
  const uint8_t* end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(size), header);
  std::string bytes(reinterpret_cast<const char*>(header), static_cast<size_t>(end - header));
  message.AppendToString(&bytes);

  absl::MutexLock lock(&write_mutex_);
  const Deadline deadline(patience_);
  for (size_t put = 0; put < bytes.size();) {
    if (absl::Status status = WaitFor(fd_, POLLOUT, deadline); !status.ok()) {
      if (!absl::IsDeadlineExceeded(status)) return status;
      return absl::UnavailableError("The peer does not read");
    }
    // Without the first flag a peer that died would end this process too.
    const ssize_t count =
        send(fd_, bytes.data() + put, bytes.size() - put, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) {
      return absl::UnavailableError("The peer closed the stream");
    }
    if (count < 0) return absl::ErrnoToStatus(errno, "Cannot write to the stream");
    put += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status MessageStream::Read(google::protobuf::MessageLite& message, absl::Duration timeout) {
  if (absl::Status status = WaitFor(fd_, POLLIN, Deadline(timeout)); !status.ok()) return status;
  const Deadline deadline(patience_);
  uint64_t size = 0;
  for (int i = 0;; ++i) {
    char byte;
    size_t got;
    if (absl::Status status = ReadExactly(fd_, &byte, 1, deadline, got); !status.ok()) {
      if (i == 0 || !absl::IsOutOfRange(status)) return status;
      return absl::DataLossError("The stream ended inside a message's length");
    }
    size |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if ((byte & 0x80) == 0) break;
    if (i + 1 == kMaxLengthBytes) return absl::DataLossError("Not a message: its length is wrong");
  }
  if (size > static_cast<uint64_t>(kMaxMessageBytes)) {
    return absl::DataLossError(
        absl::StrCat("Message too large: ", size, " bytes, at most ", kMaxMessageBytes));
  }
  // Memory grows with what really comes: a length alone must not cost any.
  std::string bytes;
  while (bytes.size() < size) {
    const size_t before = bytes.size();
    bytes.resize(std::min<uint64_t>(size, before + kReadBytes));
    size_t got;
    if (absl::Status status =
            ReadExactly(fd_, &bytes[before], bytes.size() - before, deadline, got);
        !status.ok()) {
      if (!absl::IsOutOfRange(status)) return status;
      return absl::DataLossError(absl::StrCat("The stream ended inside a message: ", before + got,
                                              " of ", size, " bytes came"));
    }
  }
  if (!message.ParseFromString(bytes)) {
    return absl::DataLossError(absl::StrCat("Not a ", message.GetTypeName(), " message: ", size,
                                            " bytes that do not parse"));
  }
  return absl::OkStatus();
}

void MessageStream::Shutdown() { shutdown(fd_, SHUT_RDWR); }

}  // namespace qpruner
