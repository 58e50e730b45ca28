#include "proto/message_stream.h"

#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "qpruner/internal/v1/engine.pb.h"

namespace qpruner {
namespace {

using internal::v1::EngineReply;

struct Pair {
  Pair() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    near = std::make_unique<MessageStream>(fds[0]);
  }
  ~Pair() {
    if (fds[1] >= 0) close(fds[1]);
  }
  void SendRaw(const std::string& bytes) {
    EXPECT_EQ(send(fds[1], bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  void CloseFar() {
    close(fds[1]);
    fds[1] = -1;
  }
  std::unique_ptr<MessageStream> Far() {
    auto far = std::make_unique<MessageStream>(fds[1]);
    fds[1] = -1;
    return far;
  }
  int fds[2];
  std::unique_ptr<MessageStream> near;
};

TEST(MessageStream, MessagesOfAnySizeComeOutAsTheyWentIn) {
  Pair pair;
  auto far = pair.Far();
  // 0 bytes, one-byte and two-byte lengths, and more than a socket buffers.
  const std::vector<size_t> sizes = {0, 1, 127, 128, 20000, 3 << 20};
  std::thread writer([&] {
    for (size_t size : sizes) {
      EngineReply reply;
      if (size > 0) reply.mutable_progress()->set_message(std::string(size, 'x'));
      ASSERT_TRUE(far->Write(reply).ok());
    }
  });
  for (size_t size : sizes) {
    EngineReply reply;
    ASSERT_TRUE(pair.near->Read(reply).ok());
    EXPECT_EQ(reply.progress().message().size(), size);
  }
  writer.join();
}

TEST(MessageStream, ConcurrentWritersDoNotMixTheirMessages) {
  Pair pair;
  auto far = pair.Far();
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) {
    writers.emplace_back([&, i] {
      EngineReply reply;
      reply.mutable_progress()->set_message(std::string(50000, static_cast<char>('a' + i)));
      for (int n = 0; n < 20; ++n) ASSERT_TRUE(far->Write(reply).ok());
    });
  }
  for (int n = 0; n < 80; ++n) {
    EngineReply reply;
    ASSERT_TRUE(pair.near->Read(reply).ok());
    const std::string& text = reply.progress().message();
    EXPECT_EQ(text, std::string(50000, text[0]));
  }
  for (auto& writer : writers) writer.join();
}

TEST(MessageStream, TellsACloseBetweenMessagesFromOneInside) {
  EngineReply reply;
  Pair clean;
  clean.CloseFar();
  EXPECT_EQ(clean.near->Read(reply).code(), absl::StatusCode::kOutOfRange);

  Pair in_length;
  in_length.SendRaw("\x80");
  in_length.CloseFar();
  EXPECT_EQ(in_length.near->Read(reply).code(), absl::StatusCode::kDataLoss);

  Pair in_body;
  in_body.SendRaw(std::string("\x05") + "ab");
  in_body.CloseFar();
  const absl::Status status = in_body.near->Read(reply);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("2 of 5"), absl::string_view::npos) << status;
}

TEST(MessageStream, RefusesLengthsThatCannotBe) {
  EngineReply reply;
  Pair huge;
  huge.SendRaw("\xff\xff\xff\x7f");  // 256 MiB - 1: refused before it is allocated.
  EXPECT_EQ(huge.near->Read(reply).code(), absl::StatusCode::kDataLoss);
  Pair endless;
  endless.SendRaw("\xff\xff\xff\xff\xff");
  EXPECT_EQ(endless.near->Read(reply).code(), absl::StatusCode::kDataLoss);
  Pair garbage;
  garbage.SendRaw(std::string("\x03") + "\xff\xff\xff");
  EXPECT_EQ(garbage.near->Read(reply).code(), absl::StatusCode::kDataLoss);
}

TEST(MessageStream, RefusesToWriteWhatThePeerWouldRefuse) {
  Pair pair;
  EngineReply reply;
  reply.mutable_progress()->set_message(std::string(kMaxMessageBytes + 1, 'x'));
  EXPECT_EQ(pair.near->Write(reply).code(), absl::StatusCode::kResourceExhausted);
}

TEST(MessageStream, WritingToADeadPeerIsUnavailable) {
  Pair pair;
  pair.CloseFar();
  EXPECT_EQ(pair.near->Write(EngineReply()).code(), absl::StatusCode::kUnavailable);
}

TEST(MessageStream, HalfAMessageHoldsNobody) {
  for (const std::string& half : {std::string("\x80"), std::string("\x05") + "ab"}) {
    Pair pair;
    MessageStream near(dup(pair.fds[0]), absl::Milliseconds(20));
    pair.SendRaw(half);
    EngineReply reply;
    const absl::Status status = near.Read(reply);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(status.message(), "The stream stopped inside a message");
  }
}

TEST(MessageStream, APeerThatDoesNotReadHoldsNobody) {
  Pair pair;
  MessageStream near(dup(pair.fds[0]), absl::Milliseconds(20));
  EngineReply reply;
  // More than a socket buffers.
  reply.mutable_progress()->set_message(std::string(8 << 20, 'x'));
  const absl::Status status = near.Write(reply);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "The peer does not read");
}

TEST(MessageStream, ReadingTimesOutAndShutdownWakesTheReader) {
  Pair pair;
  EngineReply reply;
  EXPECT_EQ(pair.near->Read(reply, absl::Milliseconds(1)).code(),
            absl::StatusCode::kDeadlineExceeded);
  std::thread reader([&] {
    EngineReply never;
    EXPECT_EQ(pair.near->Read(never).code(), absl::StatusCode::kOutOfRange);
  });
  pair.near->Shutdown();
  reader.join();
}

}  // namespace
}  // namespace qpruner
