#include "worker/engine/formats/checkpoint.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Position of the first element whose exponent bits are all set, that is an infinity or a NaN; -1
// if there is none. `exponent` is that mask.
template <typename Bits>
int64_t FindNonFinite(absl::string_view bytes, Bits exponent) {
  // Blocks let the compiler vectorize the common case, in which nothing is found.
  constexpr size_t kBlock = 4096;
  Bits block[kBlock];
  const size_t count = bytes.size() / sizeof(Bits);
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::memcpy(block, bytes.data() + begin * sizeof(Bits), size * sizeof(Bits));
    unsigned found = 0;
    for (size_t i = 0; i < size; ++i) found |= (block[i] & exponent) == exponent;
    if (found == 0) continue;
    for (size_t i = 0; i < size; ++i) {
      if ((block[i] & exponent) == exponent) return static_cast<int64_t>(begin + i);
    }
  }
  return -1;
}

int64_t FindNonFinite(DType dtype, absl::string_view bytes) {
  switch (dtype) {
    case DType::kF32:
      return FindNonFinite<uint32_t>(bytes, 0x7f800000u);
    case DType::kF16:
      return FindNonFinite<uint16_t>(bytes, 0x7c00u);
    case DType::kBF16:
      return FindNonFinite<uint16_t>(bytes, 0x7f80u);
    default:
      return -1;
  }
}

// Bytes of one row of `tensor`, as its dtype.
int64_t RowBytes(const CheckpointTensor& tensor) {
  int64_t bytes = DTypeSize(tensor.dtype);
  for (size_t i = 1; i < tensor.shape.size(); ++i) bytes *= tensor.shape[i];
  return bytes;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& path) {
  struct stat info;
  if (::stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat("No such model: ", path));
  }
  if (S_ISDIR(info.st_mode)) return OpenFolderCheckpoint(path);
  if (absl::EndsWithIgnoreCase(path, ".gguf")) return OpenGgufCheckpoint(path);
  return absl::InvalidArgumentError(absl::StrCat(
      "Not a model: ", path, "; give a .gguf file, or the folder that holds config.json"));
}

absl::Status Checkpoint::TakeExpected(std::map<std::string, CheckpointTensor>& found,
                                      absl::string_view described_by) {
  for (const ExpectedTensor& expected : ExpectedTensors(config_)) {
    auto node = found.extract(expected.name);
    if (!node) {
      return absl::InvalidArgumentError(absl::StrCat("The model lacks a tensor that its ",
                                                     described_by, " calls for: ", expected.name,
                                                     " ", ShapeText(expected.shape)));
    }
    const CheckpointTensor& tensor = node.mapped();
    if (tensor.shape != expected.shape) {
      return absl::InvalidArgumentError(
          absl::StrCat("Tensor ", expected.name, " has shape ", ShapeText(tensor.shape), ", but ",
                       described_by, " calls for ", ShapeText(expected.shape)));
    }
    if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 &&
        tensor.dtype != DType::kBF16) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", expected.name, " has dtype ",
                                                     DTypeName(tensor.dtype),
                                                     "; weights must be F32, F16 or BF16"));
    }
    tensors_.insert(std::move(node));
  }
  return absl::OkStatus();
}

const CheckpointTensor& Checkpoint::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    std::fprintf(stderr, "Checkpoint has no tensor %s\n", name.c_str());
    std::abort();
  }
  return found->second;
}

void Checkpoint::ReadRows(const std::string& name, int64_t first, int64_t count, char* out) const {
  const CheckpointTensor& stored = tensor(name);
  const int64_t row = RowBytes(stored);
  std::memcpy(out, stored.bytes.data() + first * row, static_cast<size_t>(count * row));
}

int64_t Checkpoint::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += static_cast<int64_t>(tensor.bytes.size());
  return bytes;
}

absl::Status Checkpoint::CheckFinite() const {
  for (const auto& [name, tensor] : tensors_) {
    int64_t position = -1;
    if (tensor.in_place) {
      position = FindNonFinite(tensor.dtype, tensor.bytes);
    } else {
      // Enough rows at a time to be quick, few enough to stay in cache.
      const int64_t row = RowBytes(tensor);
      const int64_t rows = tensor.shape[0];
      const int64_t step = std::clamp<int64_t>((1 << 18) / row, 1, rows);
      std::string values(static_cast<size_t>(step * row), '\0');
      for (int64_t first = 0; first < rows && position < 0; first += step) {
        const int64_t count = std::min(step, rows - first);
        ReadRows(name, first, count, values.data());
        position = FindNonFinite(
            tensor.dtype, absl::string_view(values.data(), static_cast<size_t>(count * row)));
        if (position >= 0) position += first * row / DTypeSize(tensor.dtype);
      }
    }
    if (position >= 0) {
      return absl::InvalidArgumentError(absl::StrCat("Tensor ", name,
                                                     " holds an infinity or NaN at element ",
                                                     position, "; all weights must be finite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace qpruner::engine
