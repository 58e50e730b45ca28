// How the programs' logs look. Some of what they say was said by others (workers, storages, model
// hubs): whatever that was, a message is one line and cannot pass for another.
#ifndef QPRUNER_BASE_LOG_LINES_H_
#define QPRUNER_BASE_LOG_LINES_H_

#include <memory>
#include <string>

#include "spdlog/formatter.h"

namespace qpruner {

// spdlog's `pattern`, with EscapeControls() of each message. For spdlog::set_formatter, which sets
// it on the sinks, so that loggers that share these get it, too.
std::unique_ptr<spdlog::formatter> OneLineFormatter(std::string pattern);

}  // namespace qpruner

#endif  // QPRUNER_BASE_LOG_LINES_H_
