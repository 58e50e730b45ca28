#include "worker/engine/formats/safetensors_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/aside_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"

namespace qpruner::engine {
namespace {

// Length and JSON, padded with spaces so that the tensors start at a multiple of 8 bytes.
std::string Header(const std::vector<TensorToWrite>& tensors, const std::vector<int64_t>& sizes,
                   const std::map<std::string, std::string>& metadata) {
  // Ordered: in the file, the names appear in the order of their bytes.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    header[tensors[i].name] = {{"dtype", DTypeName(tensors[i].dtype)},
                               {"shape", tensors[i].shape},
                               {"data_offsets", {offset, offset + sizes[i]}}};
    offset += sizes[i];
  }
  std::string json =
      header.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(json.size() >> (8 * i));
  return length + json;
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path, std::vector<TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  // By falling element size, then name: every tensor stays aligned to its elements, as the
  // reference implementation does it.
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    const int64_t size_a = DTypeSize(a.dtype), size_b = DTypeSize(b.dtype);
    return size_a != size_b ? size_a > size_b : a.name < b.name;
  });
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (i > 0 && tensors[i].name == tensors[i - 1].name) {
      return absl::InternalError(absl::StrCat("Tensor given twice: ", tensors[i].name));
    }
    int64_t bytes = DTypeSize(tensors[i].dtype);
    for (int64_t size : tensors[i].shape) {
      if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) {
        return absl::InternalError(absl::StrCat("Impossible shape of tensor: ", tensors[i].name));
      }
    }
    sizes.push_back(bytes);
  }

  ASSIGN_OR_RETURN(const auto file, AsideFile::Create(path));
  RETURN_IF_ERROR(file->Append(Header(tensors, sizes, metadata)));
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t written = 0;
    for (int64_t piece = 0; piece < tensors[i].pieces; ++piece) {
      const std::string bytes = tensors[i].bytes();
      written += static_cast<int64_t>(bytes.size());
      RETURN_IF_ERROR(file->Append(bytes));
    }
    if (written != sizes[i]) {
      return absl::InternalError(absl::StrCat("Tensor ", tensors[i].name, " has ", written,
                                              " bytes, its dtype and shape call for ", sizes[i]));
    }
  }
  return file->Commit();
}

}  // namespace qpruner::engine
