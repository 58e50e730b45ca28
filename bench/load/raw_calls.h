// Calls of any gRPC service in a closed loop. Requests and replies stay bytes: services of whatever
// language are driven by one program, which neither makes nor reads messages meanwhile.
#ifndef QPRUNER_BENCH_LOAD_RAW_CALLS_H_
#define QPRUNER_BENCH_LOAD_RAW_CALLS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/load/closed_loop.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace qpruner::load {

// The messages of a file: of each its length as 4 bytes, least significant first, then its bytes.
// NOT_FOUND; DATA_LOSS: it ends within a message.
absl::StatusOr<std::vector<std::string>> ReadMessages(const std::string& path);
absl::Status WriteMessages(const std::string& path, const std::vector<std::string>& messages);

struct RawLoad {
  // HOST:PORT.
  std::string address;
  // "/package.Service/Method"; one message is its argument and one its answer.
  std::string method;
  // Serialized; all callers together send them in turn, and from the first again after the last.
  std::vector<std::string> requests;
  int callers = 64;
  // Connections that they share.
  int channels = 4;
  // After which a call has failed.
  absl::Duration call_limit = absl::Seconds(60);
  // Of each caller, in all. Further replies are let go.
  int64_t kept_replies = std::numeric_limits<int64_t>::max();
};

class RawCalls {
 public:
  // INVALID_ARGUMENT: there is no request. UNAVAILABLE: nobody answers at the address in time.
  static absl::StatusOr<std::unique_ptr<RawCalls>> Connect(RawLoad load,
                                                           absl::Duration limit = absl::Minutes(1));

  CallStats Run(absl::Duration duration);
  // Each reply that was kept, behind its request: request, reply, request, reply, ...
  std::vector<std::string> Exchanges() const;

 private:
  struct Reply {
    size_t request = 0;
    std::string message;
  };
  explicit RawCalls(RawLoad load);
  void Start(int caller, std::function<void(const grpc::Status&)> done);

  const RawLoad load_;
  std::vector<grpc::ByteBuffer> requests_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  std::atomic<size_t> next_request_ = 0;
  // By caller, whose one call in flight adds to it.
  std::vector<std::vector<Reply>> replies_;
};

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_RAW_CALLS_H_
