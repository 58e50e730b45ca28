// JSON from foreign files, where what nlohmann::json passes over in silence is refused.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_STRICT_JSON_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_STRICT_JSON_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace qpruner::engine {

struct StrictJsonLimits {
  // Printing and comparing values recurses: without a bound a few megabytes of '[' end the process.
  int max_depth = 32;
  // Keys of any one object.
  size_t max_keys = 2'000'000;
};

// Parses exactly one JSON object. INVALID_ARGUMENT says what is wrong: syntax or UTF-8 (with the
// byte), a key that occurs twice, nesting or size beyond `limits`, not an object.
absl::StatusOr<nlohmann::json> ParseStrictJsonObject(absl::string_view text,
                                                     const StrictJsonLimits& limits = {});

// The same for any JSON value.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text,
                                               const StrictJsonLimits& limits = {});

// A string from a foreign file, escaped, quoted and cut so that it fits a message.
std::string QuotedForMessage(absl::string_view text);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_STRICT_JSON_H_
