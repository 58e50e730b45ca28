#include "base/log_lines.h"

#include <utility>

#include "base/utf8.h"
#include "spdlog/details/log_msg.h"
#include "spdlog/pattern_formatter.h"

namespace qpruner {
namespace {

class EscapingFormatter final : public spdlog::formatter {
 public:
  explicit EscapingFormatter(std::unique_ptr<spdlog::formatter> pattern)
      : pattern_(std::move(pattern)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& line) override {
    const std::string payload =
        EscapeControls(absl::string_view(message.payload.data(), message.payload.size()));
    spdlog::details::log_msg escaped = message;
    escaped.payload = payload;
    pattern_->format(escaped, line);
    // The pattern says where a sink puts its colour: after the escaping, in the sink's own message.
    message.color_range_start = escaped.color_range_start;
    message.color_range_end = escaped.color_range_end;
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<EscapingFormatter>(pattern_->clone());
  }

 private:
  const std::unique_ptr<spdlog::formatter> pattern_;
};

}  // namespace

std::unique_ptr<spdlog::formatter> OneLineFormatter(std::string pattern) {
  return std::make_unique<EscapingFormatter>(
      std::make_unique<spdlog::pattern_formatter>(std::move(pattern)));
}

}  // namespace qpruner
