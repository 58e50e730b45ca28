// Bare connections, for tests that say what no client library would.
#ifndef QPRUNER_TESTS_TESTING_LOOPBACK_CONNECTION_H_
#define QPRUNER_TESTS_TESTING_LOOPBACK_CONNECTION_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace qpruner {

// A TCP connection to 127.0.0.1 at the port of `address` ("host:port"), which the caller closes.
inline int ConnectToLoopback(const std::string& address) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  return fd;
}

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_LOOPBACK_CONNECTION_H_
