// The key-value part of a GGUF file, with typed access.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_METADATA_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_METADATA_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner::engine {

// Numbers are those of the file.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// "UINT8", ...
const char* GgufValueTypeName(GgufValueType type);
// Bytes of a number or boolean in the file; 0 for strings and arrays.
int64_t GgufValueSize(GgufValueType type);

// An array of numbers, booleans or strings. Views into the file.
struct GgufArray {
  GgufValueType element_type = GgufValueType::kUint8;
  int64_t count = 0;
  absl::string_view numbers;               // Numbers and booleans, as stored: little-endian.
  std::vector<absl::string_view> strings;  // kString only.
};

struct GgufValue {
  GgufValueType type;
  // Booleans, integers, floating-point numbers, strings, arrays. float32 is kept as such.
  std::variant<bool, uint64_t, int64_t, float, double, absl::string_view, GgufArray> value;
};

// Typed access. All errors are INVALID_ARGUMENT and name the key, the rule and the value. Strings
// are UTF-8: checked when they are asked for. Views are valid as long as the file that gave them.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  explicit GgufMetadata(std::map<std::string, GgufValue> values) : values_(std::move(values)) {}

  const std::map<std::string, GgufValue>& values() const { return values_; }
  bool Has(const std::string& key) const { return values_.count(key) != 0; }

  // A value of any integer type within [min, max]. `absent` unset: the key is required.
  absl::StatusOr<int64_t> Integer(const std::string& key, std::optional<int64_t> absent,
                                  int64_t min, int64_t max) const;
  // A finite value of a floating-point type above `above` and at most `max`; of a float32 the
  // shortest decimal that stands for it, so that 1e-5 is read as people wrote it.
  absl::StatusOr<double> Number(const std::string& key, std::optional<double> absent, double above,
                                double max) const;
  absl::StatusOr<bool> Boolean(const std::string& key, std::optional<bool> absent) const;
  absl::StatusOr<absl::string_view> String(const std::string& key,
                                           std::optional<absl::string_view> absent) const;
  // One integer within [min, max] for each of `count` blocks: a value that all share, or an array.
  absl::StatusOr<std::vector<int64_t>> IntegerPerBlock(const std::string& key, int64_t count,
                                                       int64_t min, int64_t max) const;
  // Arrays. Required; UTF-8 of strings is checked.
  absl::StatusOr<std::vector<absl::string_view>> Strings(const std::string& key) const;
  absl::StatusOr<std::vector<int64_t>> Integers(const std::string& key) const;
  absl::StatusOr<std::vector<float>> Floats(const std::string& key) const;

 private:
  const GgufValue* Find(const std::string& key) const;

  std::map<std::string, GgufValue> values_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_METADATA_H_
