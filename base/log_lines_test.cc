#include "base/log_lines.h"

#include <sstream>

#include "gtest/gtest.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"

namespace qpruner {
namespace {

TEST(OneLineFormatter, AMessageIsOneLineWhateverItSays) {
  std::ostringstream written;
  auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(written);
  spdlog::logger logger("server", sink);
  logger.set_formatter(OneLineFormatter("%l %v"));
  logger.warn("device {}, {{\"audit\":\"a\\nb\"}}", "x\ninfo {\"audit\":\"DeleteJob\"}\r\x1b[2K");
  // Another logger with the same sink, as the audit log is.
  spdlog::logger("audit", sink).info("gr\xC3\xBC\xC3\x9F \xFF.");
  EXPECT_EQ(written.str(),
            "warning device x\\ninfo {\"audit\":\"DeleteJob\"}\\r\\x1b[2K, {\"audit\":\"a\\nb\"}\n"
            "info gr\xC3\xBC\xC3\x9F \\xff.\n");
}

}  // namespace
}  // namespace qpruner
