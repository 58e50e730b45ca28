// Messages as JSON, for --json.
#ifndef QPRUNER_CLIENT_JSON_OUTPUT_H_
#define QPRUNER_CLIENT_JSON_OUTPUT_H_

#include <google/protobuf/message.h>

#include <string>

namespace qpruner {

// Protobuf's JSON with the names of the .proto files, as job files have them. Fields with presence
// that are not set are left out; others are written with their default. 64-bit numbers are text, as
// protobuf's JSON has them. No newline at the end.
std::string ToJson(const google::protobuf::Message& message, bool indented);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JSON_OUTPUT_H_
