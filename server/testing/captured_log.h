// What the server logs, its audit log included, as qpruner-server would write it.
#ifndef QPRUNER_SERVER_TESTING_CAPTURED_LOG_H_
#define QPRUNER_SERVER_TESTING_CAPTURED_LOG_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/log_lines.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {

// Stands in for the default logger as long as it lives: from before the server starts until it is
// gone. Thread-safe.
class CapturedLog {
 public:
  CapturedLog() {
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("server", sink_));
    // Of this sink alone: the default logger before keeps its own.
    sink_->set_formatter(OneLineFormatter("%l %v"));
  }
  ~CapturedLog() { spdlog::set_default_logger(before_); }

  // Each with its end, where a message that is written as several lines is one.
  std::vector<std::string> lines() { return sink_->lines(); }
  std::string text() { return absl::StrJoin(lines(), ""); }
  std::vector<std::string> LinesWith(absl::string_view part) {
    std::vector<std::string> found;
    for (std::string& line : lines()) {
      if (absl::StrContains(line, part)) found.push_back(std::move(line));
    }
    return found;
  }

 private:
  class Sink final : public spdlog::sinks::base_sink<std::mutex> {
   public:
    std::vector<std::string> lines() {
      std::lock_guard<std::mutex> lock(mutex_);
      return lines_;
    }

   protected:
    void sink_it_(const spdlog::details::log_msg& message) override {
      spdlog::memory_buf_t line;
      formatter_->format(message, line);
      lines_.emplace_back(line.data(), line.size());
    }
    void flush_() override {}

   private:
    std::vector<std::string> lines_;
  };

  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  const std::shared_ptr<Sink> sink_ = std::make_shared<Sink>();
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_CAPTURED_LOG_H_
