#include "worker/engine/formats/gguf_writer.h"

#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "base/aside_file.h"
#include "base/status_macros.h"

namespace qpruner::engine {
namespace {

constexpr uint64_t kAlignment = 32;  // The format's default.

// x86-64 and AArch64 are little-endian, as the file is.
template <typename T>
void Put(std::string& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void PutString(std::string& out, absl::string_view text) {
  Put<uint64_t>(out, text.size());
  out.append(text.data(), text.size());
}

void Pad(std::string& out) { out.resize((out.size() + kAlignment - 1) / kAlignment * kAlignment); }

}  // namespace

void GgufMetadataToWrite::AddKey(absl::string_view key, GgufValueType type) {
  ++count_;
  PutString(bytes_, key);
  Put(bytes_, static_cast<uint32_t>(type));
}

void GgufMetadataToWrite::AddArray(absl::string_view key, GgufValueType element_type,
                                   uint64_t count) {
  AddKey(key, GgufValueType::kArray);
  Put(bytes_, static_cast<uint32_t>(element_type));
  Put(bytes_, count);
}

void GgufMetadataToWrite::AddUint32(absl::string_view key, uint32_t value) {
  AddKey(key, GgufValueType::kUint32);
  Put(bytes_, value);
}

void GgufMetadataToWrite::AddFloat32(absl::string_view key, float value) {
  AddKey(key, GgufValueType::kFloat32);
  Put(bytes_, value);
}

void GgufMetadataToWrite::AddBool(absl::string_view key, bool value) {
  AddKey(key, GgufValueType::kBool);
  Put(bytes_, static_cast<uint8_t>(value ? 1 : 0));
}

void GgufMetadataToWrite::AddString(absl::string_view key, absl::string_view value) {
  AddKey(key, GgufValueType::kString);
  PutString(bytes_, value);
}

void GgufMetadataToWrite::AddStrings(absl::string_view key,
                                     const std::vector<std::string>& values) {
  AddArray(key, GgufValueType::kString, values.size());
  for (const std::string& value : values) PutString(bytes_, value);
}

void GgufMetadataToWrite::AddInt32s(absl::string_view key, const std::vector<int32_t>& values) {
  AddArray(key, GgufValueType::kInt32, values.size());
  for (int32_t value : values) Put(bytes_, value);
}

void GgufMetadataToWrite::AddFloat32s(absl::string_view key, const std::vector<float>& values) {
  AddArray(key, GgufValueType::kFloat32, values.size());
  for (float value : values) Put(bytes_, value);
}

void GgufMetadataToWrite::Append(const GgufMetadataToWrite& other) {
  count_ += other.count_;
  bytes_ += other.bytes_;
}

absl::Status WriteGguf(const std::string& path, const GgufMetadataToWrite& metadata,
                       const std::vector<GgufTensorToWrite>& tensors) {
  std::string header = "GGUF";
  Put<uint32_t>(header, 3);
  Put<uint64_t>(header, tensors.size());
  Put<uint64_t>(header, metadata.count());
  header += metadata.bytes();
  uint64_t offset = 0;
  std::vector<uint64_t> sizes;
  for (const GgufTensorToWrite& tensor : tensors) {
    const GgmlTypeInfo& info = InfoOf(tensor.type);
    int64_t elements = 1;
    for (int64_t size : tensor.shape) elements *= size;
    if (tensor.shape.empty() || tensor.shape.back() % info.block_size != 0) {
      return absl::InternalError(
          absl::StrCat("Tensor ", tensor.name, " does not consist of ", info.name, " blocks"));
    }
    sizes.push_back(static_cast<uint64_t>(GgmlBytes(tensor.type, elements)));
    PutString(header, tensor.name);
    Put(header, static_cast<uint32_t>(tensor.shape.size()));
    for (auto it = tensor.shape.rbegin(); it != tensor.shape.rend(); ++it) {
      Put(header, static_cast<uint64_t>(*it));
    }
    Put(header, static_cast<uint32_t>(tensor.type));
    Put(header, offset);
    offset += (sizes.back() + kAlignment - 1) / kAlignment * kAlignment;
  }
  Pad(header);

  ASSIGN_OR_RETURN(const auto file, AsideFile::Create(path));
  RETURN_IF_ERROR(file->Append(header));
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::string bytes = tensors[i].bytes();
    if (bytes.size() != sizes[i]) {
      return absl::InternalError(absl::StrCat("Tensor ", tensors[i].name, " has ", bytes.size(),
                                              " bytes, its type and shape call for ", sizes[i]));
    }
    Pad(bytes);
    RETURN_IF_ERROR(file->Append(bytes));
  }
  return file->Commit();
}

}  // namespace qpruner::engine
