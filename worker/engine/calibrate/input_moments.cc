#include "worker/engine/calibrate/input_moments.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"

namespace qpruner::engine {
namespace {

// The linear whose input `kind` shares.
LinearKind FirstOfInput(LinearKind kind) {
  switch (kind) {
    case LinearKind::kKey:
    case LinearKind::kValue:
      return LinearKind::kQuery;
    case LinearKind::kUp:
      return LinearKind::kGate;
    default:
      return kind;
  }
}

}  // namespace

void WalkInputMoments(WeightSource& source, const std::vector<TokenBatch>& batches,
                      const std::function<void(int64_t block, const BlockWeights& weights,
                                               const InputMoments& moments)>& visit,
                      const std::function<void(double fraction)>& on_progress,
                      int64_t first_block) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  const at::Device device = source.device();
  int64_t longest = 1, tokens = 0;
  HostStore waiting = HostStore::Beside(device);
  std::vector<at::Tensor> hidden, rows;  // rows: the flat positions that are not padding.
  {
    for (const TokenBatch& batch : batches) {
      longest = std::max(longest, batch.ids.size(1));
      tokens += batch.lengths.sum().item<int64_t>();
      hidden.push_back(waiting.Keep(Embed(source, batch.ids)));
      rows.push_back((at::arange(batch.ids.size(1)).unsqueeze(0) < batch.lengths.unsqueeze(1))
                         .reshape({-1})
                         .nonzero()
                         .squeeze(1)
                         .to(device));
    }
  }
  TORCH_CHECK_VALUE(tokens > 0, "Calibration needs samples");
  const RotaryTables rotary = MakeRotaryTables(config, longest, device, source.dtype());
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    const BlockWeights weights = source.Block(block);
    const bool is_visited = block >= first_block;
    InputMoments moments;
    for (size_t i = 0; i < batches.size(); ++i) {
      const LinearFunction recording = [&](LinearKind kind, const at::Tensor& x,
                                           const at::Tensor& weight, const at::Tensor& bias) {
        if (is_visited && FirstOfInput(kind) == kind) {
          const at::Tensor seen =
              x.reshape({-1, x.size(-1)}).index_select(0, rows[i]).to(at::kFloat);
          const at::Tensor product = at::matmul(seen.t(), seen);
          if (moments[kind].defined()) {
            moments[kind] += product;
          } else {
            moments[kind] = product;
          }
        }
        return PlainLinear(kind, x, weight, bias);
      };
      hidden[i] = waiting.Keep(BlockForward(config, config.blocks[static_cast<size_t>(block)],
                                            weights, rotary, hidden[i].to(device), recording));
    }
    if (is_visited) {
      for (LinearKind kind : kLinearKinds) {
        if (FirstOfInput(kind) == kind) {
          moments[kind] = (moments[kind] / static_cast<double>(tokens)).to(at::kCPU);
        }
      }
      for (LinearKind kind : kLinearKinds) moments[kind] = moments[FirstOfInput(kind)];
      visit(block, weights, moments);
    }
    if (on_progress) {
      on_progress(static_cast<double>(block + 1) / static_cast<double>(config.num_blocks()));
    }
  }
}

}  // namespace qpruner::engine
