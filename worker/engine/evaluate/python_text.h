// Python's string methods, where lm-eval's prompts and scores rely on them. All take valid UTF-8.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_PYTHON_TEXT_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_PYTHON_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace qpruner::engine {

// len(text): Unicode code points.
int64_t CodePointCount(absl::string_view text);

// text.strip() and text.rstrip(): Unicode white space.
absl::string_view Strip(absl::string_view text);
absl::string_view StripRight(absl::string_view text);

// text.capitalize(): the first letter in upper case, all others in lower case. Letters whose other
// case is more than one letter are left as they are.
std::string Capitalize(absl::string_view text);

// text.replace(from, to).
std::string ReplaceAll(absl::string_view text, absl::string_view from, absl::string_view to);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_PYTHON_TEXT_H_
