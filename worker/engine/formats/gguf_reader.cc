#include "worker/engine/formats/gguf_reader.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/numeric/bits.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/mapped_file.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

constexpr absl::string_view kMagic = "GGUF";
// Bounds of the format and of llama.cpp, and what no honest model comes near.
constexpr uint64_t kMaxKeyBytes = 65'535;
constexpr uint64_t kMaxNameBytes = 64;
constexpr uint64_t kMaxKeys = 1'000'000;
constexpr uint64_t kMaxTensors = 1'000'000;
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 24;
constexpr uint32_t kMaxDimensions = 4;
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = int64_t{1} << 20;
constexpr char kAlignmentKey[] = "general.alignment";

template <typename... Parts>
absl::Status Invalid(const Parts&... rule) {
  return absl::InvalidArgumentError(absl::StrCat(rule...));
}

// Takes little-endian values off the front of the header. x86-64 and AArch64 are little-endian.
class Cursor {
 public:
  explicit Cursor(absl::string_view bytes) : bytes_(bytes) {}

  size_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  // `what` is the thing of which the file should hold more.
  template <typename T>
  absl::StatusOr<T> Take(absl::string_view what) {
    static_assert(std::is_arithmetic_v<T>);
    if (left() < sizeof(T)) return Truncated(what, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  absl::StatusOr<absl::string_view> TakeBytes(uint64_t count, absl::string_view what) {
    if (left() < count) return Truncated(what, count);
    const absl::string_view view = bytes_.substr(position_, count);
    position_ += count;
    return view;
  }

  absl::StatusOr<absl::string_view> TakeString(uint64_t max_bytes, absl::string_view what) {
    ASSIGN_OR_RETURN(const auto size, Take<uint64_t>(what));
    if (size > max_bytes) {
      return Invalid(what, " claims ", size, " bytes; at most ", max_bytes, " are allowed");
    }
    return TakeBytes(size, what);
  }

 private:
  absl::Status Truncated(absl::string_view what, uint64_t needed) const {
    return Invalid("the file is truncated: ", what, " needs ", needed, " bytes at byte ", position_,
                   ", ", left(), " follow");
  }

  const absl::string_view bytes_;
  size_t position_ = 0;
};

bool IsKnown(uint32_t type) { return type <= static_cast<uint32_t>(GgufValueType::kFloat64); }

absl::StatusOr<bool> TakeBoolean(Cursor& cursor, absl::string_view what) {
  ASSIGN_OR_RETURN(const auto byte, cursor.Take<uint8_t>(what));
  if (byte > 1) return Invalid(what, " must be 0 or 1, as a boolean is, but is ", int{byte});
  return byte == 1;
}

absl::StatusOr<GgufArray> TakeArray(Cursor& cursor, const std::string& what) {
  GgufArray array;
  ASSIGN_OR_RETURN(const auto type, cursor.Take<uint32_t>(what));
  if (!IsKnown(type)) return Invalid(what, " has elements of the unknown type ", type);
  array.element_type = static_cast<GgufValueType>(type);
  if (array.element_type == GgufValueType::kArray) {
    return Invalid(what, " is an array of arrays, which is not supported");
  }
  ASSIGN_OR_RETURN(const auto count, cursor.Take<uint64_t>(what));
  // The numbers and names that are made of elements are larger than they: a file of zeros must not
  // become many times its size.
  if (count > kMaxArrayElements) {
    return Invalid(what, " claims ", count, " elements, more than ", kMaxArrayElements);
  }
  // The least that an element takes; a string has its length before it.
  const auto size = array.element_type == GgufValueType::kString
                        ? uint64_t{8}
                        : static_cast<uint64_t>(GgufValueSize(array.element_type));
  if (count > cursor.left() / size) {
    return Invalid("the file is truncated: ", what, " claims ", count, " elements of at least ",
                   size, " bytes, ", cursor.left(), " bytes follow");
  }
  array.count = static_cast<int64_t>(count);
  if (array.element_type == GgufValueType::kString) {
    array.strings.reserve(count);
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const absl::string_view text, cursor.TakeString(cursor.left(), what));
      array.strings.push_back(text);
    }
    return array;
  }
  ASSIGN_OR_RETURN(array.numbers, cursor.TakeBytes(count * size, what));
  if (array.element_type == GgufValueType::kBool &&
      std::any_of(array.numbers.begin(), array.numbers.end(),
                  [](char byte) { return byte != 0 && byte != 1; })) {
    return Invalid(what, " must hold 0 or 1, as booleans are");
  }
  return array;
}

// Reads an integer of type T and keeps it as Wide.
template <typename T, typename Wide>
absl::Status TakeNumber(Cursor& cursor, const std::string& what, GgufValue& value) {
  ASSIGN_OR_RETURN(const auto number, cursor.Take<T>(what));
  value.value = static_cast<Wide>(number);
  return absl::OkStatus();
}

absl::StatusOr<GgufValue> TakeValue(Cursor& cursor, const std::string& what) {
  ASSIGN_OR_RETURN(const auto type, cursor.Take<uint32_t>(what));
  if (!IsKnown(type)) return Invalid(what, " has the unknown type ", type);
  GgufValue value;
  value.type = static_cast<GgufValueType>(type);
  switch (value.type) {
    case GgufValueType::kUint8:
      RETURN_IF_ERROR((TakeNumber<uint8_t, uint64_t>(cursor, what, value)));
      break;
    case GgufValueType::kInt8:
      RETURN_IF_ERROR((TakeNumber<int8_t, int64_t>(cursor, what, value)));
      break;
    case GgufValueType::kUint16:
      RETURN_IF_ERROR((TakeNumber<uint16_t, uint64_t>(cursor, what, value)));
      break;
    case GgufValueType::kInt16:
      RETURN_IF_ERROR((TakeNumber<int16_t, int64_t>(cursor, what, value)));
      break;
    case GgufValueType::kUint32:
      RETURN_IF_ERROR((TakeNumber<uint32_t, uint64_t>(cursor, what, value)));
      break;
    case GgufValueType::kInt32:
      RETURN_IF_ERROR((TakeNumber<int32_t, int64_t>(cursor, what, value)));
      break;
    case GgufValueType::kFloat32:
      RETURN_IF_ERROR((TakeNumber<float, float>(cursor, what, value)));
      break;
    case GgufValueType::kUint64:
      RETURN_IF_ERROR((TakeNumber<uint64_t, uint64_t>(cursor, what, value)));
      break;
    case GgufValueType::kInt64:
      RETURN_IF_ERROR((TakeNumber<int64_t, int64_t>(cursor, what, value)));
      break;
    case GgufValueType::kFloat64:
      RETURN_IF_ERROR((TakeNumber<double, double>(cursor, what, value)));
      break;
    case GgufValueType::kBool: {
      ASSIGN_OR_RETURN(const bool flag, TakeBoolean(cursor, what));
      value.value = flag;
      break;
    }
    case GgufValueType::kString: {
      ASSIGN_OR_RETURN(const absl::string_view text, cursor.TakeString(cursor.left(), what));
      value.value = text;
      break;
    }
    case GgufValueType::kArray: {
      ASSIGN_OR_RETURN(GgufArray array, TakeArray(cursor, what));
      value.value = std::move(array);
      break;
    }
  }
  return value;
}

absl::StatusOr<std::map<std::string, GgufValue>> TakeMetadata(Cursor& cursor, uint64_t count) {
  std::map<std::string, GgufValue> values;
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const absl::string_view key,
                     cursor.TakeString(kMaxKeyBytes, absl::StrCat("the name of key ", i)));
    const std::string what = absl::StrCat("key ", QuotedForMessage(key));
    if (key.empty()) return Invalid("the name of key ", i, " is empty");
    ASSIGN_OR_RETURN(GgufValue value, TakeValue(cursor, what));
    if (!values.emplace(std::string(key), std::move(value)).second) {
      return Invalid(what, " occurs twice");
    }
  }
  return values;
}

// A tensor's entry in the header, with its place in the data section.
struct Entry {
  std::string name;
  GgufTensor tensor;
  uint64_t offset = 0;
  int64_t size = 0;  // Bytes.
};

absl::StatusOr<Entry> TakeEntry(Cursor& cursor, uint64_t index) {
  Entry entry;
  {
    ASSIGN_OR_RETURN(const absl::string_view name,
                     cursor.TakeString(kMaxNameBytes, absl::StrCat("the name of tensor ", index)));
    if (name.empty()) return Invalid("the name of tensor ", index, " is empty");
    entry.name = std::string(name);
  }
  const std::string what = absl::StrCat("tensor ", QuotedForMessage(entry.name));
  ASSIGN_OR_RETURN(const auto dimensions, cursor.Take<uint32_t>(what));
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return Invalid(what, " must have 1 to ", kMaxDimensions, " dimensions, has ", dimensions);
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    ASSIGN_OR_RETURN(const auto size, cursor.Take<uint64_t>(what));
    if (size == 0) return Invalid(what, ": no dimension may be 0");
    if (size > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(elements, static_cast<int64_t>(size), &elements)) {
      return Invalid(what, ": its shape is too large");
    }
    entry.tensor.shape.insert(entry.tensor.shape.begin(), static_cast<int64_t>(size));
  }
  ASSIGN_OR_RETURN(const auto number, cursor.Take<uint32_t>(what));
  const std::optional<GgmlType> type = GgmlTypeFromNumber(number);
  if (!type) {
    return Invalid(what, ": its type ", number,
                   " is not supported; supported: ", SupportedGgmlTypes());
  }
  entry.tensor.type = *type;
  const GgmlTypeInfo& info = InfoOf(*type);
  const int64_t row = entry.tensor.shape.back();
  if (row % info.block_size != 0) {
    return Invalid(what, ": a row of ", row, " weights is not a whole number of ", info.name,
                   " blocks of ", info.block_size);
  }
  if (__builtin_mul_overflow(elements / info.block_size, info.block_bytes, &entry.size)) {
    return Invalid(what, ": its shape is too large");
  }
  ASSIGN_OR_RETURN(entry.offset, cursor.Take<uint64_t>(what));
  return entry;
}

// `position` at the next multiple of `alignment`.
uint64_t Aligned(uint64_t position, int64_t alignment) {
  const auto step = static_cast<uint64_t>(alignment);
  return (position + step - 1) / step * step;
}

// The tensors of `entries` in `data`, which begins with the first of them.
absl::StatusOr<std::map<std::string, GgufTensor>> PlaceTensors(std::vector<Entry> entries,
                                                               absl::string_view data,
                                                               int64_t alignment) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.offset, a.name) < std::pair(b.offset, b.name);
  });
  std::map<std::string, GgufTensor> tensors;
  uint64_t end = 0;
  for (Entry& entry : entries) {
    const std::string what = absl::StrCat("tensor ", QuotedForMessage(entry.name));
    if (entry.offset % static_cast<uint64_t>(alignment) != 0) {
      return Invalid(what, ": its offset ", entry.offset, " is not a multiple of the alignment ",
                     alignment);
    }
    if (entry.offset < end) {
      return Invalid(what, ": it begins at ", entry.offset,
                     " and overlaps the tensor before, which ends at ", end);
    }
    if (entry.offset != Aligned(end, alignment)) {
      return Invalid(what, ": it begins at ", entry.offset,
                     " and leaves a gap after the tensor before, which ends at ", end);
    }
    if (entry.offset > data.size() ||
        static_cast<uint64_t>(entry.size) > data.size() - entry.offset) {
      return Invalid(what, ": it takes ", entry.size, " bytes at ", entry.offset,
                     ", but the file holds ", data.size(), " bytes of tensors. Is it truncated?");
    }
    end = entry.offset + static_cast<uint64_t>(entry.size);
    entry.tensor.bytes = data.substr(entry.offset, static_cast<size_t>(entry.size));
    if (!tensors.emplace(std::move(entry.name), std::move(entry.tensor)).second) {
      return Invalid(what, " occurs twice");
    }
  }
  // Writers may or may not pad behind the last tensor.
  if (data.size() > Aligned(end, alignment)) {
    return Invalid("the file has ", data.size() - end, " bytes after the last tensor");
  }
  return tensors;
}

class MappedGguf : public GgufReader {
 public:
  explicit MappedGguf(std::unique_ptr<const MappedFile> file) : file_(std::move(file)) {}

  absl::Status Parse() {
    Cursor cursor(file_->bytes());
    ASSIGN_OR_RETURN(const absl::string_view magic, cursor.TakeBytes(4, "the magic number"));
    if (magic != kMagic) return Invalid("it does not begin with \"GGUF\"");
    ASSIGN_OR_RETURN(const auto version, cursor.Take<uint32_t>("the version"));
    if (version != 2 && version != 3) {
      if ((version & 0xFFFF) == 0) return Invalid("it is big-endian, which is not supported");
      return Invalid("its version is ", version, "; supported: 2 and 3");
    }
    ASSIGN_OR_RETURN(const auto tensor_count, cursor.Take<uint64_t>("the number of tensors"));
    ASSIGN_OR_RETURN(const auto key_count, cursor.Take<uint64_t>("the number of keys"));
    if (tensor_count > kMaxTensors) {
      return Invalid("it claims ", tensor_count, " tensors; at most ", kMaxTensors, " are allowed");
    }
    if (key_count > kMaxKeys) {
      return Invalid("it claims ", key_count, " keys; at most ", kMaxKeys, " are allowed");
    }
    {
      ASSIGN_OR_RETURN(auto values, TakeMetadata(cursor, key_count));
      metadata_ = GgufMetadata(std::move(values));
    }
    ASSIGN_OR_RETURN(const int64_t alignment,
                     metadata_.Integer(kAlignmentKey, kDefaultAlignment, 8, kMaxAlignment));
    if (!absl::has_single_bit(static_cast<uint64_t>(alignment))) {
      return Invalid("key ", kAlignmentKey, " must be a power of two, is ", alignment);
    }
    std::vector<Entry> entries;
    for (uint64_t i = 0; i < tensor_count; ++i) {
      ASSIGN_OR_RETURN(Entry entry, TakeEntry(cursor, i));
      entries.push_back(std::move(entry));
    }
    const uint64_t data_begin = Aligned(cursor.position(), alignment);
    const absl::string_view bytes = file_->bytes();
    const absl::string_view data =
        data_begin <= bytes.size() ? bytes.substr(data_begin) : absl::string_view();
    ASSIGN_OR_RETURN(tensors_, PlaceTensors(std::move(entries), data, alignment));
    return absl::OkStatus();
  }

  const GgufMetadata& metadata() const override { return metadata_; }
  const std::map<std::string, GgufTensor>& tensors() const override { return tensors_; }

 private:
  const std::unique_ptr<const MappedFile> file_;
  GgufMetadata metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace

int64_t GgufTensor::element_count() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

absl::StatusOr<std::unique_ptr<const GgufReader>> GgufReader::Open(const std::string& path) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  auto reader = std::make_unique<MappedGguf>(std::move(file));
  if (absl::Status status = reader->Parse(); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat("Not a valid GGUF file: ", path, ": ",
                                                    absl::string_view(status.message())));
  }
  return std::unique_ptr<const GgufReader>(std::move(reader));
}

}  // namespace qpruner::engine
