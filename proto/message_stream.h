// Length-delimited protobuf messages over a connected stream socket: what the worker's agent and
// its engine speak. Each message stands behind its length as a varint
// (proto/qpruner/internal/v1/engine.proto).
#ifndef QPRUNER_PROTO_MESSAGE_STREAM_H_
#define QPRUNER_PROTO_MESSAGE_STREAM_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "google/protobuf/message_lite.h"

namespace qpruner {

// Larger messages are refused on both sides: nothing that is spoken here comes near it.
inline constexpr int64_t kMaxMessageBytes = 64 << 20;

// One thread may read while others write.
class MessageStream {
 public:
  // Owns `fd`, a blocking stream socket. `patience` is what one message may take from its first
  // byte to its last: a peer that is not trusted must not hold a thread by half a message, nor by
  // not reading.
  explicit MessageStream(int fd, absl::Duration patience = absl::InfiniteDuration())
      : fd_(fd), patience_(patience) {}
  ~MessageStream();
  MessageStream(const MessageStream&) = delete;
  MessageStream& operator=(const MessageStream&) = delete;

  // Whole messages, one after the other, whatever the thread.
  // RESOURCE_EXHAUSTED: too large, nothing was written. UNAVAILABLE: the peer is gone, or does
  // not read: give it up.
  absl::Status Write(const google::protobuf::MessageLite& message);

  // Waits for the next message, at most `timeout` until its first byte.
  // OUT_OF_RANGE: the peer closed between messages. DEADLINE_EXCEEDED: nothing came; read again.
  // DATA_LOSS: the stream ended or stopped inside a message, or is not made of such messages: give
  // it up.
  absl::Status Read(google::protobuf::MessageLite& message,
                    absl::Duration timeout = absl::InfiniteDuration());

  // Ends both directions: a thread in Read wakes up with OUT_OF_RANGE or DATA_LOSS. Thread-safe.
  void Shutdown();

 private:
  const int fd_;
  const absl::Duration patience_;
  absl::Mutex write_mutex_;
};

}  // namespace qpruner

#endif  // QPRUNER_PROTO_MESSAGE_STREAM_H_
