// Feeds bytes to the reader of the agent's and the engine's protocol, as a broken or hostile engine
// would. It must end each stream with an error, and read back what it can write.
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "google/protobuf/stubs/logging.h"
#include "proto/message_stream.h"
#include "qpruner/internal/v1/engine.pb.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // protobuf prints a line for each text that is not UTF-8.
  const google::protobuf::LogSilencer silence;
  // What a socket's buffer takes without a reader.
  if (size > 64 * 1024) return 0;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  qpruner::MessageStream stream(ends[0]);
  if (write(ends[1], data, size) != static_cast<ssize_t>(size)) std::abort();
  shutdown(ends[1], SHUT_WR);
  qpruner::internal::v1::EngineReply reply;
  // Each message takes at least one byte.
  size_t messages = 0;
  while (stream.Read(reply).ok()) {
    if (++messages > size) std::abort();
  }
  close(ends[1]);
  return 0;
}
