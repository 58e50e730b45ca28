#include "server/auth/audit_log.h"

#include <nlohmann/json.hpp>

#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr size_t kMaxResource = 512;

std::string ToLine(const nlohmann::json& line) {
  return line.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace

// Not registered with spdlog, whose set_level reaches the registered ones.
AuditLog::AuditLog()
    : logger_("audit", spdlog::default_logger()->sinks().begin(),
              spdlog::default_logger()->sinks().end()) {}

void AuditLog::Write(const Call& call, const absl::Status& outcome) {
  logger_.info("{}", ToLine({{"audit", std::string(call.method)},
                             {"caller", std::string(call.caller)},
                             {"peer", call.peer},
                             {"resource", std::string(call.resource.substr(0, kMaxResource))},
                             {"outcome", absl::StatusCodeToString(outcome.code())}}));
}

void AuditLog::WriteOmitted(int count) {
  logger_.info("{}", ToLine({{"audit", "refused calls without a line"}, {"count", count}}));
}

}  // namespace qpruner::server
