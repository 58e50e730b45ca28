#include "worker/engine/formats/gguf_metadata.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

absl::Status Invalid(absl::string_view key, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("key ", key, " ", rule));
}

std::string Show(const GgufValue& value) {
  if (const auto* flag = std::get_if<bool>(&value.value)) return *flag ? "true" : "false";
  if (const auto* number = std::get_if<uint64_t>(&value.value)) return absl::StrCat(*number);
  if (const auto* number = std::get_if<int64_t>(&value.value)) return absl::StrCat(*number);
  if (const auto* number = std::get_if<float>(&value.value)) return absl::StrCat(*number);
  if (const auto* number = std::get_if<double>(&value.value)) return absl::StrCat(*number);
  if (const auto* text = std::get_if<absl::string_view>(&value.value)) {
    return QuotedForMessage(*text);
  }
  const auto& array = std::get<GgufArray>(value.value);
  return absl::StrCat("an array of ", array.count, " ", GgufValueTypeName(array.element_type));
}

template <typename T>
T Load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// The integer at `bytes`; nullopt if the type is no integer or beyond int64.
std::optional<int64_t> LoadInteger(GgufValueType type, const char* bytes) {
  switch (type) {
    case GgufValueType::kUint8:
      return Load<uint8_t>(bytes);
    case GgufValueType::kInt8:
      return Load<int8_t>(bytes);
    case GgufValueType::kUint16:
      return Load<uint16_t>(bytes);
    case GgufValueType::kInt16:
      return Load<int16_t>(bytes);
    case GgufValueType::kUint32:
      return Load<uint32_t>(bytes);
    case GgufValueType::kInt32:
      return Load<int32_t>(bytes);
    case GgufValueType::kInt64:
      return Load<int64_t>(bytes);
    case GgufValueType::kUint64: {
      const auto value = Load<uint64_t>(bytes);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> AsInteger(const GgufValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value.value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value.value)) {
    if (*number <= static_cast<uint64_t>(INT64_MAX)) return static_cast<int64_t>(*number);
  }
  return std::nullopt;
}

}  // namespace

const char* GgufValueTypeName(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
      return "UINT8";
    case GgufValueType::kInt8:
      return "INT8";
    case GgufValueType::kUint16:
      return "UINT16";
    case GgufValueType::kInt16:
      return "INT16";
    case GgufValueType::kUint32:
      return "UINT32";
    case GgufValueType::kInt32:
      return "INT32";
    case GgufValueType::kFloat32:
      return "FLOAT32";
    case GgufValueType::kBool:
      return "BOOL";
    case GgufValueType::kString:
      return "STRING";
    case GgufValueType::kArray:
      return "ARRAY";
    case GgufValueType::kUint64:
      return "UINT64";
    case GgufValueType::kInt64:
      return "INT64";
    case GgufValueType::kFloat64:
      return "FLOAT64";
  }
  return "?";
}

int64_t GgufValueSize(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
    case GgufValueType::kInt8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kUint16:
    case GgufValueType::kInt16:
      return 2;
    case GgufValueType::kUint32:
    case GgufValueType::kInt32:
    case GgufValueType::kFloat32:
      return 4;
    case GgufValueType::kUint64:
    case GgufValueType::kInt64:
    case GgufValueType::kFloat64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      return 0;
  }
  return 0;
}

const GgufValue* GgufMetadata::Find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

absl::StatusOr<int64_t> GgufMetadata::Integer(const std::string& key, std::optional<int64_t> absent,
                                              int64_t min, int64_t max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (absent) return *absent;
    return Invalid(key, "is missing");
  }
  const std::optional<int64_t> number = AsInteger(*value);
  if (!number || *number < min || *number > max) {
    return Invalid(
        key, absl::StrCat("must be an integer from ", min, " to ", max, ", is ", Show(*value)));
  }
  return *number;
}

absl::StatusOr<double> GgufMetadata::Number(const std::string& key, std::optional<double> absent,
                                            double above, double max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (absent) return *absent;
    return Invalid(key, "is missing");
  }
  double number = std::nan("");
  if (const auto* wide = std::get_if<double>(&value->value)) {
    number = *wide;
  } else if (const auto* narrow = std::get_if<float>(&value->value)) {
    char digits[32];
    const auto end = std::to_chars(digits, digits + sizeof(digits) - 1, *narrow);
    *end.ptr = '\0';
    number = std::strtod(digits, nullptr);
  }
  if (!(number > above) || !(number <= max)) {
    return Invalid(key, absl::StrCat("must be a floating-point number above ", above,
                                     " and at most ", max, ", is ", Show(*value)));
  }
  return number;
}

absl::StatusOr<bool> GgufMetadata::Boolean(const std::string& key,
                                           std::optional<bool> absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (absent) return *absent;
    return Invalid(key, "is missing");
  }
  if (const auto* flag = std::get_if<bool>(&value->value)) return *flag;
  return Invalid(key, absl::StrCat("must be true or false, is ", Show(*value)));
}

absl::StatusOr<absl::string_view> GgufMetadata::String(
    const std::string& key, std::optional<absl::string_view> absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    if (absent) return *absent;
    return Invalid(key, "is missing");
  }
  const auto* text = std::get_if<absl::string_view>(&value->value);
  if (text == nullptr) return Invalid(key, absl::StrCat("must be a string, is ", Show(*value)));
  if (!IsUtf8(*text)) return Invalid(key, "must be UTF-8");
  return *text;
}

absl::StatusOr<std::vector<int64_t>> GgufMetadata::IntegerPerBlock(const std::string& key,
                                                                   int64_t count, int64_t min,
                                                                   int64_t max) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || !std::holds_alternative<GgufArray>(value->value)) {
    ASSIGN_OR_RETURN(const int64_t shared, Integer(key, std::nullopt, min, max));
    return std::vector<int64_t>(static_cast<size_t>(count), shared);
  }
  ASSIGN_OR_RETURN(std::vector<int64_t> values, Integers(key));
  if (static_cast<int64_t>(values.size()) != count) {
    return Invalid(key, absl::StrCat("must have one value for each of the ", count, " blocks, is ",
                                     Show(*value)));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < min || values[i] > max) {
      return Invalid(key, absl::StrCat("must hold integers from ", min, " to ", max, ", but [", i,
                                       "] is ", values[i]));
    }
  }
  return values;
}

absl::StatusOr<std::vector<absl::string_view>> GgufMetadata::Strings(const std::string& key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Invalid(key, "is missing");
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element_type != GgufValueType::kString) {
    return Invalid(key, absl::StrCat("must be an array of strings, is ", Show(*value)));
  }
  for (size_t i = 0; i < array->strings.size(); ++i) {
    if (!IsUtf8(array->strings[i])) return Invalid(key, absl::StrCat("[", i, "] must be UTF-8"));
  }
  return array->strings;
}

absl::StatusOr<std::vector<int64_t>> GgufMetadata::Integers(const std::string& key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Invalid(key, "is missing");
  const auto* array = std::get_if<GgufArray>(&value->value);
  const auto size = array == nullptr ? 0 : static_cast<size_t>(GgufValueSize(array->element_type));
  std::vector<int64_t> result;
  for (size_t i = 0; size != 0 && i < static_cast<size_t>(array->count); ++i) {
    const auto number = LoadInteger(array->element_type, array->numbers.data() + i * size);
    if (!number) break;
    result.push_back(*number);
  }
  if (size == 0 || static_cast<int64_t>(result.size()) != array->count ||
      !LoadInteger(array->element_type, "\0\0\0\0\0\0\0\0")) {
    return Invalid(key, absl::StrCat("must be an array of integers, is ", Show(*value)));
  }
  return result;
}

absl::StatusOr<std::vector<float>> GgufMetadata::Floats(const std::string& key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Invalid(key, "is missing");
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr || array->element_type != GgufValueType::kFloat32) {
    return Invalid(key, absl::StrCat("must be an array of FLOAT32, is ", Show(*value)));
  }
  std::vector<float> result(static_cast<size_t>(array->count));
  // An empty array has no bytes to point to.
  if (!result.empty()) std::memcpy(result.data(), array->numbers.data(), array->numbers.size());
  return result;
}

}  // namespace qpruner::engine
