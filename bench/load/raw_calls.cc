#include "bench/load/raw_calls.h"

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/channel_arguments.h"
#include "grpcpp/support/slice.h"

namespace qpruner::load {
namespace {

constexpr size_t kLengthBytes = 4;

grpc::ByteBuffer BufferOf(const std::string& message) {
  const grpc::Slice slice(message);
  return grpc::ByteBuffer(&slice, 1);
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// A connection of its own: channels with equal arguments would share one.
std::unique_ptr<grpc::GenericStub> NewStub(const std::string& address, absl::Time deadline) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(absl::ToChronoTime(deadline))) return nullptr;
  return std::make_unique<grpc::GenericStub>(channel);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadMessages(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("No such file: ", path));
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::string> messages;
  for (size_t at = 0; at < bytes.size();) {
    size_t length = 0;
    for (size_t i = 0; i < kLengthBytes && at + i < bytes.size(); ++i) {
      length |= static_cast<size_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
    }
    at += kLengthBytes;
    if (at > bytes.size() || length > bytes.size() - at) {
      return absl::DataLossError(absl::StrCat("The file ends within a message: ", path));
    }
    messages.push_back(bytes.substr(at, length));
    at += length;
  }
  return messages;
}

absl::Status WriteMessages(const std::string& path, const std::vector<std::string>& messages) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (const std::string& message : messages) {
    for (size_t i = 0; i < kLengthBytes; ++i) {
      file.put(static_cast<char>(message.size() >> (8 * i) & 0xff));
    }
    file.write(message.data(), static_cast<std::streamsize>(message.size()));
  }
  file.close();
  if (!file) return absl::InternalError(absl::StrCat("The file could not be written: ", path));
  return absl::OkStatus();
}

RawCalls::RawCalls(RawLoad load)
    : load_(std::move(load)), replies_(static_cast<size_t>(load_.callers)) {
  for (const std::string& request : load_.requests) requests_.push_back(BufferOf(request));
}

absl::StatusOr<std::unique_ptr<RawCalls>> RawCalls::Connect(RawLoad load, absl::Duration limit) {
  if (load.requests.empty()) return absl::InvalidArgumentError("There is no request to send");
  const absl::Time deadline = absl::Now() + limit;
  std::unique_ptr<RawCalls> calls(new RawCalls(std::move(load)));
  const RawLoad& of = calls->load_;
  for (int i = 0; i < of.channels; ++i) {
    calls->stubs_.push_back(NewStub(of.address, deadline));
    if (calls->stubs_.back() == nullptr) {
      return absl::UnavailableError(absl::StrCat("Nobody answers at ", of.address));
    }
  }
  return calls;
}

CallStats RawCalls::Run(absl::Duration duration) {
  return RunClosedLoop(load_.callers, duration,
                       [this](int caller, std::function<void(const grpc::Status&)> done) {
                         Start(caller, std::move(done));
                       });
}

void RawCalls::Start(int caller, std::function<void(const grpc::Status&)> done) {
  struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer request, reply;
  };
  // Owned by what ends the call. It must be gone before `done` is called, which may end the loop: a
  // call refers to its channel, and a channel's end on one of gRPC's threads waits for that thread.
  auto* call = new Call;
  call->context.set_deadline(absl::ToChronoTime(absl::Now() + load_.call_limit));
  const size_t request = next_request_++ % requests_.size();
  call->request = requests_[request];
  std::vector<Reply>& replies = replies_[static_cast<size_t>(caller)];
  stubs_[static_cast<size_t>(caller) % stubs_.size()]->UnaryCall(
      &call->context, load_.method, grpc::StubOptions(), &call->request, &call->reply,
      [this, call, request, &replies, done = std::move(done)](const grpc::Status& status) {
        if (status.ok() && static_cast<int64_t>(replies.size()) < load_.kept_replies) {
          replies.push_back({request, BytesOf(call->reply)});
        }
        delete call;
        done(status);
      });
}

std::vector<std::string> RawCalls::Exchanges() const {
  std::vector<std::string> messages;
  for (const std::vector<Reply>& replies : replies_) {
    for (const Reply& reply : replies) {
      messages.push_back(load_.requests[reply.request]);
      messages.push_back(reply.message);
    }
  }
  return messages;
}

}  // namespace qpruner::load
