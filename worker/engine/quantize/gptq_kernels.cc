#include "worker/engine/quantize/gptq_kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <utility>

#include "worker/engine/quantize/float_kernels.h"
#include "worker/engine/quantize/integer_kernels.h"
#include "worker/engine/vector_clones.h"

namespace qpruner::engine {
namespace {

QPRUNER_VECTOR_CLONES
void Subtract(float* w, const float* u, float factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) w[j] -= factor * u[j];
}

// `round(i, w)` sets the code of weight i and returns its value.
template <typename Round>
void RoundRow(float* w, int64_t count, const float* u, int64_t stride, float* errors,
              const Round& round) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = u + i * stride;
    errors[i] = (w[i] - round(i, w[i])) / row[i];
    Subtract(w + i + 1, row + i + 1, errors[i], count - i - 1);
  }
}

// The values of a table in ascending order, with their codes.
class SortedTable {
 public:
  explicit SortedTable(Codebook codebook) : size_(size_t{1} << CodebookBits(codebook)) {
    const float* values = CodebookValues(codebook);
    for (size_t i = 0; i < size_; ++i) entries_[i] = {values[i], static_cast<uint8_t>(i)};
    std::sort(entries_.begin(), entries_.begin() + static_cast<ptrdiff_t>(size_));
  }

  const std::pair<float, uint8_t>& Nearest(float x) const {
    const auto end = entries_.begin() + static_cast<ptrdiff_t>(size_);
    const auto above = std::lower_bound(
        entries_.begin(), end, x,
        [](const std::pair<float, uint8_t>& entry, float value) { return entry.first < value; });
    if (above == entries_.begin()) return *above;
    if (above == end) return *(end - 1);
    return above->first - x < x - (above - 1)->first ? *above : *(above - 1);
  }

 private:
  size_t size_;
  std::array<std::pair<float, uint8_t>, 256> entries_;
};

const SortedTable& TableOf(Codebook codebook) {
  static const std::array<SortedTable, 5> tables = {
      SortedTable(Codebook::kNf2), SortedTable(Codebook::kNf3), SortedTable(Codebook::kNf4),
      SortedTable(Codebook::kNf8), SortedTable(Codebook::kFp4)};
  return tables[static_cast<size_t>(codebook)];
}

}  // namespace

void RoundRowToIntegers(float* w, int64_t count, const float* u, int64_t stride, const float* scale,
                        const uint8_t* zero_point, int bits, uint8_t* codes, float* errors) {
  RoundRow(w, count, u, stride, errors, [&](int64_t i, float value) {
    float rounded = 0;
    EncodeIntegers(&value, 1, scale[i], zero_point[i], bits, codes + i);
    DecodeIntegers(codes + i, 1, scale[i], zero_point[i], &rounded);
    return rounded;
  });
}

void RoundRowToCodebook(float* w, int64_t count, const float* u, int64_t stride,
                        const float* absmax, Codebook codebook, uint8_t* codes, float* errors) {
  const SortedTable& table = TableOf(codebook);
  RoundRow(w, count, u, stride, errors, [&](int64_t i, float value) {
    const auto& [entry, code] = table.Nearest(absmax[i] > 0 ? value / absmax[i] : 0);
    codes[i] = code;
    return entry * absmax[i];
  });
}

}  // namespace qpruner::engine
