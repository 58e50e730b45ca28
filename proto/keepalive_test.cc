#include "proto/keepalive.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "gtest/gtest.h"
#include "tests/testing/loopback_connection.h"

namespace qpruner {
namespace {

// A server that greets and then says nothing, as one whose machine has lost its network. Takes one
// connection.
class MuteServer {
 public:
  MuteServer() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      const int peer = accept(listener_, nullptr, nullptr);
      // An empty SETTINGS frame: a connection of HTTP/2 is there.
      const unsigned char settings[9] = {0, 0, 0, 4, 0, 0, 0, 0, 0};
      EXPECT_EQ(write(peer, settings, sizeof settings), 9);
      char ignored[4096];
      while (read(peer, ignored, sizeof ignored) > 0) {
      }
      close(peer);
    });
  }
  // After the client has closed.
  ~MuteServer() {
    thread_.join();
    close(listener_);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  const int listener_;
  int port_ = 0;
  std::thread thread_;
};

TEST(Keepalive, AnHonestPeerIsNoFlood) {
  // Twice: pings may be held up on the way, and then come close together.
  EXPECT_LE(2 * Keepalive().min_peer_interval, Keepalive().time);
}

TEST(Keepalive, ACallNoticesThatItsServerIsGone) {
  MuteServer server;
  grpc::ChannelArguments arguments;
  SetKeepalive(arguments, {.time = absl::Milliseconds(50), .timeout = absl::Milliseconds(50)});
  grpc::Status status;
  {
    const auto channel =
        grpc::CreateCustomChannel(server.address(), grpc::InsecureChannelCredentials(), arguments);
    grpc::GenericStub stub(channel);
    // No deadline, as a watch.
    grpc::ClientContext context;
    grpc::Slice nothing("");
    grpc::ByteBuffer request(&nothing, 1), response;
    absl::Notification done;
    stub.UnaryCall(&context, "/qpruner.v1.JobService/GetJob", {}, &request, &response,
                   [&](grpc::Status end) {
                     status = std::move(end);
                     done.Notify();
                   });
    done.WaitForNotification();
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
}

TEST(Keepalive, AServerClosesTheConnectionOfAPeerThatIsGone) {
  grpc::CallbackGenericService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&service);
  SetKeepalive(builder, {.time = absl::Milliseconds(50), .timeout = absl::Milliseconds(50)});
  const auto server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);

  // A client that greets, calls nothing and answers no ping.
  const int peer = ConnectToLoopback(absl::StrCat("127.0.0.1:", port));
  const std::string greeting("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 33);
  ASSERT_EQ(write(peer, greeting.data(), greeting.size()), 33);
  // A server that keeps the connection is found out by a time-out, not by waiting for ever.
  const timeval patience{.tv_sec = 30, .tv_usec = 0};
  setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  char ignored[4096];
  ssize_t size = 0;
  while ((size = read(peer, ignored, sizeof ignored)) > 0) {
  }
  EXPECT_EQ(size, 0) << strerror(errno);
  close(peer);
  server->Shutdown();
}

}  // namespace
}  // namespace qpruner
