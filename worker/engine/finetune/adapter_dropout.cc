#include "worker/engine/finetune/adapter_dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "worker/engine/finetune/block_loops.h"
#include "worker/engine/split_mix.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kGrain = 1 << 15;

}  // namespace

at::Tensor AdapterDropout::Apply(LinearKind kind, const at::Tensor& x) const {
  const int64_t rows = x.size(0), width = x.size(1);
  at::Tensor mask = at::empty({rows, width}, at::kFloat);
  float* const values = mask.data_ptr<float>();
  const auto threshold = static_cast<uint32_t>(probability * 4294967296.0);
  const auto scale = static_cast<float>(1.0 / (1.0 - probability));
  const uint64_t stream =
      SplitMix(SplitMix(SplitMix(seed) + static_cast<uint64_t>(step)) +
               static_cast<uint64_t>(block * kLinearKindCount + static_cast<int64_t>(kind)));
  at::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       const auto sequence = static_cast<uint64_t>(first_sequence + row / length);
                       const auto position = static_cast<uint64_t>(row % length);
                       MaskRow(SplitMix(SplitMix(stream + sequence) + position), threshold, scale,
                               width, values + row * width);
                     }
                   });
  return x * mask.to(x.device(), x.scalar_type());
}

}  // namespace qpruner::engine
