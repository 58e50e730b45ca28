// Reads a protobuf message from a YAML tree by reflection, strictly.
//
// JSON is read the same way: the YAML 1.2 that yaml-cpp parses contains it. Field names are those
// of the .proto files, or their lowerCamelCase JSON names. What a person may have meant is never
// guessed: an unknown field, a field twice, text where a number belongs, a fraction where a whole
// number belongs, an unknown enum value or two fields of a oneof are each a problem with a path and
// a line. All problems are reported, not only the first.
#ifndef QPRUNER_CLIENT_MESSAGE_READER_H_
#define QPRUNER_CLIENT_MESSAGE_READER_H_

#include <google/protobuf/message.h>
#include <yaml-cpp/node/node.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// Bounds on what is parsed. An alias counts as often as it is used, so that a few lines of nested
// aliases cannot stand for millions of nodes.
inline constexpr size_t kMaxMessageFileBytes = 256 * 1024;
inline constexpr int kMaxMessageDepth = 32;
inline constexpr int kMaxMessageNodes = 20000;

struct ReadProblem {
  // From 1; 0 if there is no line to name.
  int line = 0;
  // "spec.pruning.ratio"; empty for the document itself.
  std::string path;
  // "must be a number, is text".
  std::string description;
};

struct ReadResult {
  std::vector<ReadProblem> problems;
  // Line of each field that was read, by path: a server's complaint can then name it too.
  std::map<std::string, int> lines;
};

// Parses one YAML or JSON document. INVALID_ARGUMENT: a syntax error (with its line and column),
// more than one document, or more than kMaxMessageFileBytes.
absl::StatusOr<YAML::Node> ParseYaml(absl::string_view content);

// Merges `node`, a mapping, into `message`: lists and labels given replace those there. With
// problems, what `message` then holds is unspecified. `refuse`, if given, may return why a field
// may not be set here; empty: it may. Never throws.
ReadResult ReadMessage(
    const YAML::Node& node, google::protobuf::Message& message,
    const std::function<std::string(const google::protobuf::FieldDescriptor&)>& refuse = nullptr);

// As above, for the one field at `path` ("spec.pruning.ratio", "labels.team").
ReadResult ReadField(
    absl::string_view path, const YAML::Node& value, google::protobuf::Message& message,
    const std::function<std::string(const google::protobuf::FieldDescriptor&)>& refuse = nullptr);

// The candidate most like `word`, or "" if none is near enough to be a slip of the pen.
std::string ClosestName(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_MESSAGE_READER_H_
