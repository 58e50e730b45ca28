#include "worker/engine/formats/ggml_type.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_join.h"

namespace qpruner::engine {
namespace {

constexpr GgmlTypeInfo kTypes[] = {
    {GgmlType::kF32, "F32", 1, 4},       {GgmlType::kF16, "F16", 1, 2},
    {GgmlType::kBF16, "BF16", 1, 2},     {GgmlType::kQ8_0, "Q8_0", 32, 34},
    {GgmlType::kQ4_0, "Q4_0", 32, 18},   {GgmlType::kQ4_1, "Q4_1", 32, 20},
    {GgmlType::kQ5_0, "Q5_0", 32, 22},   {GgmlType::kQ5_1, "Q5_1", 32, 24},
    {GgmlType::kQ4_K, "Q4_K", 256, 144}, {GgmlType::kQ5_K, "Q5_K", 256, 176},
    {GgmlType::kQ6_K, "Q6_K", 256, 210},
};

}  // namespace

const GgmlTypeInfo& InfoOf(GgmlType type) {
  return *std::find_if(std::begin(kTypes), std::end(kTypes),
                       [&](const GgmlTypeInfo& info) { return info.type == type; });
}

int64_t GgmlBytes(GgmlType type, int64_t count) {
  const GgmlTypeInfo& info = InfoOf(type);
  return count / info.block_size * info.block_bytes;
}

std::optional<GgmlType> GgmlTypeFromNumber(uint32_t number) {
  for (const GgmlTypeInfo& info : kTypes) {
    if (static_cast<uint32_t>(info.type) == number) return info.type;
  }
  return std::nullopt;
}

std::string SupportedGgmlTypes() {
  return absl::StrJoin(kTypes, ", ",
                       [](std::string* out, const GgmlTypeInfo& info) { out->append(info.name); });
}

}  // namespace qpruner::engine
