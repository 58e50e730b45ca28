#include "proto/message_stream.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/protobuf/io/coded_stream.h"

namespace qpruner {
namespace {

// kMaxMessageBytes fits four bytes of seven bits.
constexpr int kMaxLengthBytes = 4;
constexpr size_t kReadBytes = 256 << 10;

// Reads exactly `size` bytes. The bytes read before the end or an error are told by `got`.
absl::Status ReadExactly(int fd, char* data, size_t size, size_t& got) {
  got = 0;
  while (got < size) {
    const ssize_t count = recv(fd, data + got, size - got, 0);
    if (count < 0 && errno == EINTR) continue;
    // A peer that was killed with bytes of ours unread resets the connection: also an end.
    if (count == 0 || (count < 0 && errno == ECONNRESET)) {
      return absl::OutOfRangeError("The peer closed the stream");
    }
    if (count < 0) return absl::ErrnoToStatus(errno, "Cannot read from the stream");
    got += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

// OK once there is something to read, the end included.
absl::Status WaitReadable(int fd, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    int milliseconds = -1;
    if (timeout != absl::InfiniteDuration()) {
      const int64_t left =
          absl::ToInt64Milliseconds(absl::Ceil(deadline - absl::Now(), absl::Milliseconds(1)));
      milliseconds = static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
    }
    pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = poll(&entry, 1, milliseconds);
    if (ready > 0) return absl::OkStatus();
    if (ready == 0) return absl::DeadlineExceededError("No message came in time");
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "Cannot wait for the stream");
  }
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
  for (size_t put = 0; put < bytes.size();) {
    // Without the flag a peer that died would end this process too.
    const ssize_t count = send(fd_, bytes.data() + put, bytes.size() - put, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EPIPE || errno == ECONNRESET)) {
      return absl::UnavailableError("The peer closed the stream");
    }
    if (count < 0) return absl::ErrnoToStatus(errno, "Cannot write to the stream");
    put += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status MessageStream::Read(google::protobuf::MessageLite& message, absl::Duration timeout) {
  if (absl::Status status = WaitReadable(fd_, timeout); !status.ok()) return status;
  uint64_t size = 0;
  for (int i = 0;; ++i) {
    char byte;
    size_t got;
    if (absl::Status status = ReadExactly(fd_, &byte, 1, got); !status.ok()) {
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
    if (absl::Status status = ReadExactly(fd_, &bytes[before], bytes.size() - before, got);
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
