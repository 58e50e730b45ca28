#include "worker/engine/formats/safetensors_reader.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/mapped_file.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

// The limits of the reference implementation, and what no honest model comes near.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxRank = 16;
constexpr size_t kLengthBytes = 8;
constexpr const char* kMetadataKey = "__metadata__";

struct DTypeInfo {
  DType dtype;
  const char* name;
  int64_t size;
};
constexpr DTypeInfo kDTypes[] = {
    {DType::kF32, "F32", 4},   {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
    {DType::kF64, "F64", 8},   {DType::kI64, "I64", 8}, {DType::kI32, "I32", 4},
    {DType::kI16, "I16", 2},   {DType::kI8, "I8", 1},   {DType::kU8, "U8", 1},
    {DType::kBool, "BOOL", 1},
};

const DTypeInfo& Info(DType dtype) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [&](const DTypeInfo& info) { return info.dtype == dtype; });
}

std::optional<int64_t> NonNegativeInteger(const Json& value) {
  if (!value.is_number_unsigned() ||
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return static_cast<int64_t>(value.get<uint64_t>());
}

// Header and content of a file, checked; views into `data`.
struct Parsed {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, std::string> metadata;
};

absl::Status ReadMetadata(const Json& json, std::map<std::string, std::string>& metadata) {
  if (!json.is_object()) return absl::InvalidArgumentError("__metadata__ is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "__metadata__ must map strings to strings, but not so: ", QuotedForMessage(key)));
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return absl::OkStatus();
}

// One entry of the header. `begin` and `end` are offsets into the bytes behind the header.
struct Entry {
  std::string name;
  TensorView view;
  int64_t begin = 0;
  int64_t end = 0;
};

absl::StatusOr<Entry> ReadEntry(const std::string& name, const Json& json) {
  const auto invalid = [&](auto&&... rule) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", QuotedForMessage(name), ": ", rule...));
  };
  if (!json.is_object()) return invalid("is not an object");
  for (const auto& [key, value] : json.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return invalid("has an unknown field ", QuotedForMessage(key));
    }
  }
  Entry entry;
  entry.name = name;
  const auto dtype = json.find("dtype");
  if (dtype == json.end() || !dtype->is_string()) return invalid("dtype must be a string");
  const auto& dtype_name = dtype->get_ref<const std::string&>();
  const auto* info = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                  [&](const DTypeInfo& i) { return dtype_name == i.name; });
  if (info == std::end(kDTypes)) {
    return invalid(
        "dtype ", QuotedForMessage(dtype_name),
        " is not supported; supported: F32, F16, BF16, F64, I64, I32, I16, I8, U8, BOOL");
  }
  entry.view.dtype = info->dtype;

  const auto shape = json.find("shape");
  if (shape == json.end() || !shape->is_array()) return invalid("shape must be an array");
  if (shape->size() > kMaxRank) return invalid("has more than ", kMaxRank, " dimensions");
  int64_t bytes = info->size;
  // Strides of an empty tensor are products of its other dimensions.
  int64_t strides = 1;
  for (const Json& dimension : *shape) {
    const std::optional<int64_t> size = NonNegativeInteger(dimension);
    if (!size) return invalid("shape must hold non-negative integers");
    if (__builtin_mul_overflow(bytes, *size, &bytes) ||
        __builtin_mul_overflow(strides, std::max<int64_t>(1, *size), &strides)) {
      return invalid("shape is too large");
    }
    entry.view.shape.push_back(*size);
  }

  const auto offsets = json.find("data_offsets");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2) {
    return invalid("data_offsets must be two integers");
  }
  const std::optional<int64_t> begin = NonNegativeInteger((*offsets)[0]);
  const std::optional<int64_t> end = NonNegativeInteger((*offsets)[1]);
  if (!begin || !end) return invalid("data_offsets must be two non-negative integers");
  if (*begin > *end) return invalid("data_offsets end before they begin");
  entry.begin = *begin;
  entry.end = *end;
  if (*end - *begin != bytes) {
    return invalid("data_offsets span ", *end - *begin, " bytes, but dtype and shape call for ",
                   bytes);
  }
  return entry;
}

absl::StatusOr<Parsed> Parse(absl::string_view data) {
  if (data.size() < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the file is truncated: ", data.size(),
                                                   " bytes, the header's length alone takes 8"));
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= uint64_t{static_cast<unsigned char>(data[i])} << (8 * i);
  }
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header claims ", header_bytes,
                                                   " bytes; at most ", kMaxHeaderBytes,
                                                   " are allowed. Is this a safetensors file?"));
  }
  if (header_bytes > data.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the file is truncated: the header claims ",
                                                   header_bytes, " bytes, ",
                                                   data.size() - kLengthBytes, " follow"));
  }
  const absl::string_view header = data.substr(kLengthBytes, header_bytes);
  const absl::string_view content = data.substr(kLengthBytes + header_bytes);
  if (header.empty() || header.front() != '{') {
    return absl::InvalidArgumentError("the header does not start with '{'");
  }
  const StrictJsonLimits limits = {.max_depth = 4, .max_keys = kMaxTensors + 1};
  ASSIGN_OR_RETURN(const Json json, ParseStrictJsonObject(header, limits));

  Parsed parsed;
  std::vector<Entry> entries;
  for (const auto& [name, value] : json.items()) {
    if (name == kMetadataKey) {
      RETURN_IF_ERROR(ReadMetadata(value, parsed.metadata));
      continue;
    }
    ASSIGN_OR_RETURN(Entry entry, ReadEntry(name, value));
    entries.push_back(std::move(entry));
  }
  // Every byte behind the header belongs to exactly one tensor.
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  int64_t covered = 0;
  for (Entry& entry : entries) {
    if (entry.begin != covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", QuotedForMessage(entry.name), ": data_offsets begin at ", entry.begin,
          entry.begin < covered ? " and overlap the tensor before, which ends at "
                                : " and leave a gap after the tensor before, which "
                                  "ends at ",
          covered));
    }
    if (entry.end > static_cast<int64_t>(content.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", QuotedForMessage(entry.name), ": data_offsets end at ", entry.end,
                       ", the file holds ", content.size(), " bytes of tensors. Is it truncated?"));
    }
    covered = entry.end;
    entry.view.bytes = content.substr(static_cast<size_t>(entry.begin),
                                      static_cast<size_t>(entry.end - entry.begin));
    parsed.tensors.emplace(std::move(entry.name), std::move(entry.view));
  }
  if (covered != static_cast<int64_t>(content.size())) {
    return absl::InvalidArgumentError(absl::StrCat("the file has ",
                                                   static_cast<int64_t>(content.size()) - covered,
                                                   " bytes after the last tensor"));
  }
  return parsed;
}

class MappedReader : public SafetensorsReader {
 public:
  explicit MappedReader(std::unique_ptr<const MappedFile> file) : file_(std::move(file)) {}

  absl::Status Read(const std::string& path) {
    auto parsed = Parse(file_->bytes());
    if (!parsed.ok()) {
      return absl::Status(
          parsed.status().code(),
          absl::StrCat("Not a valid safetensors file: ", path, ": ", parsed.status().message()));
    }
    parsed_ = *std::move(parsed);
    return absl::OkStatus();
  }

  const std::map<std::string, TensorView>& tensors() const override { return parsed_.tensors; }
  const std::map<std::string, std::string>& metadata() const override { return parsed_.metadata; }

 private:
  const std::unique_ptr<const MappedFile> file_;
  Parsed parsed_;
};

}  // namespace

int64_t DTypeSize(DType dtype) { return Info(dtype).size; }

const char* DTypeName(DType dtype) { return Info(dtype).name; }

int64_t TensorView::element_count() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  auto reader = std::make_unique<MappedReader>(std::move(file));
  RETURN_IF_ERROR(reader->Read(path));
  return reader;
}

}  // namespace qpruner::engine
