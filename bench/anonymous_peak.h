// The largest anonymous memory of this process: what it really takes. Pages of mapped files are
// left out, for the kernel drops them when it needs room.
#ifndef QPRUNER_BENCH_ANONYMOUS_PEAK_H_
#define QPRUNER_BENCH_ANONYMOUS_PEAK_H_

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>

namespace qpruner {

// A line of /proc/self/status such as "RssAnon", in bytes; -1 if there is none.
inline int64_t StatusBytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return -1;
}

// Looks every 2 ms, on a thread of its own, from construction on.
class AnonymousPeak {
 public:
  AnonymousPeak()
      : thread_([this](const std::stop_token& stop) {
          while (!stop.stop_requested()) {
            peak_ = std::max(peak_, StatusBytes("RssAnon"));
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
          }
        }) {}

  // Stops looking.
  int64_t Finish() {
    thread_.request_stop();
    if (thread_.joinable()) thread_.join();
    return peak_;
  }

 private:
  int64_t peak_ = 0;  // Of the thread, until it has ended.
  std::jthread thread_;
};

}  // namespace qpruner

#endif  // QPRUNER_BENCH_ANONYMOUS_PEAK_H_
