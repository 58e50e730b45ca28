#include "client/json_output.h"

#include <google/protobuf/util/json_util.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace qpruner {

std::string ToJson(const google::protobuf::Message& message, bool indented) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = indented;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) {
    // An Any of a type that this program does not know: an error detail of a newer server.
    return nlohmann::json{{"unprintable", std::string(status.message())},
                          {"text", message.ShortDebugString()}}
        .dump(indented ? 1 : -1);
  }
  while (!json.empty() && json.back() == '\n') json.pop_back();
  return json;
}

}  // namespace qpruner
