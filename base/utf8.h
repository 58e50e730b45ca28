// UTF-8. Text that goes into protobuf's string fields must be: a message with a broken one is
// written without complaint and can never be read again.
#ifndef QPRUNER_BASE_UTF8_H_
#define QPRUNER_BASE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace qpruner {

bool IsUtf8(absl::string_view text);
// Position of the first byte that belongs to no character; -1 if there is none.
int64_t FindInvalidUtf8(absl::string_view text);

// The beginning of `text`, at most `max_bytes` long, that ends between two characters.
absl::string_view CutUtf8(absl::string_view text, size_t max_bytes);

// `text` with U+FFFD in place of every byte that belongs to no character.
std::string ToUtf8(absl::string_view text);

// `text` for one line of a log or terminal: control characters, what breaks or turns lines, and
// bytes that belong to no character are written as \n, \r, \t, \x1b or \u2028. A backslash stays
// as it is, so that JSON does, too.
std::string EscapeControls(absl::string_view text);

}  // namespace qpruner

#endif  // QPRUNER_BASE_UTF8_H_
