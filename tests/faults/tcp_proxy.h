// A TCP port in front of a socket, with a cable that can be cut.
#ifndef QPRUNER_TESTS_FAULTS_TCP_PROXY_H_
#define QPRUNER_TESTS_FAULTS_TCP_PROXY_H_

#include <atomic>
#include <list>
#include <string>
#include <thread>
#include <vector>

namespace qpruner {

// Listens on 127.0.0.1 and passes bytes on to a Unix socket. One thread. Thread-safe.
class TcpProxy {
 public:
  enum class Mode {
    kPass,
    // Connections are reset, new ones too.
    kCut,
    // Connections stay, new ones are taken, and nothing gets through: a cable without a signal.
    kStall,
  };

  explicit TcpProxy(std::string upstream_path);
  ~TcpProxy();
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;

  int port() const { return port_; }
  void SetMode(Mode mode);
  // Resets the connections of this moment.
  void ResetOnce();

 private:
  struct Connection {
    int client = -1;
    int server = -1;
    // On their way to the server and to the client.
    std::string to_server, to_client;
  };

  void Run();
  void Wake();
  void Accept();
  // False: the connection has ended.
  bool Move(int from, int to, short events, std::string& buffer);
  void ResetAll();

  const std::string upstream_path_;
  int listener_ = -1;
  int wake_fd_ = -1;
  int port_ = 0;
  std::atomic<Mode> mode_ = Mode::kPass;
  std::atomic<bool> reset_once_ = false;
  std::atomic<bool> stopping_ = false;
  // Of the thread.
  std::list<Connection> connections_;
  std::thread thread_;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_FAULTS_TCP_PROXY_H_
