#include "server/auth/audit_log.h"

#include <memory>
#include <sstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// The default logger as qpruner-server --log-level=error sets it, and what it writes to.
class QuietLog {
 public:
  QuietLog() {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(written_);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("server", sink));
    spdlog::set_pattern("%v");
    spdlog::set_level(spdlog::level::err);
  }
  ~QuietLog() {
    spdlog::set_default_logger(before_);
    spdlog::set_level(spdlog::level::info);
  }
  std::string written() const { return written_.str(); }

 private:
  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  std::ostringstream written_;
};

TEST(AuditLog, IsWrittenWhateverTheLogLevel) {
  QuietLog log;
  AuditLog audit;
  // Nor does a change later on.
  spdlog::set_level(spdlog::level::off);
  spdlog::error("not this");
  audit.Write({.method = "DeleteJob",
               .caller = "ci",
               .peer = "ipv4:10.0.0.1:1",
               .resource = "projects/default/jobs/a\n{\"audit\":\"x\"}"},
              absl::NotFoundError("secret"));
  const nlohmann::json line = nlohmann::json::parse(log.written());
  EXPECT_EQ(line, (nlohmann::json{{"audit", "DeleteJob"},
                                  {"caller", "ci"},
                                  {"peer", "ipv4:10.0.0.1:1"},
                                  {"resource", "projects/default/jobs/a\n{\"audit\":\"x\"}"},
                                  {"outcome", "NOT_FOUND"}}));
}

TEST(AuditLog, ResourcesAreCut) {
  QuietLog log;
  AuditLog audit;
  audit.Write({.method = "GetJob", .resource = std::string(10'000, 'x')}, absl::OkStatus());
  EXPECT_LT(log.written().size(), 1000u);
}

}  // namespace
}  // namespace qpruner::server
