#include "worker/engine/model/forward_walk.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <utility>

#include "worker/engine/model/decoder.h"
#include "worker/engine/model/host_store.h"
#include "worker/engine/model/packed_block.h"

namespace qpruner::engine {

std::vector<at::Tensor> ForwardHiddenFrom(WeightSource& source,
                                          const std::vector<at::Tensor>& batches, BlockInputs start,
                                          const std::function<void(const BlockInputs&)>& on_inputs,
                                          const std::function<void(int64_t block)>& on_block_done) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = source.config();
  const at::Device device = source.device();

  // Between blocks the activations wait on the host, so the device holds one batch of them.
  HostStore waiting = HostStore::Beside(device);
  BlockInputs inputs = std::move(start);
  if (inputs.block == 0) {
    inputs.hidden.clear();
    for (const at::Tensor& ids : batches) {
      inputs.hidden.push_back(waiting.Keep(Embed(source, ids)));
    }
  }
  TORCH_CHECK(inputs.hidden.size() == batches.size(), "Hidden states of ", inputs.hidden.size(),
              " batches for ", batches.size());
  int64_t longest = 1, most_tokens = 1;
  for (const at::Tensor& ids : batches) {
    longest = std::max(longest, ids.size(1));
    most_tokens = std::max(most_tokens, ids.numel());
  }
  const bool packed = CanPackBlocks(device, source.dtype());
  const RotaryTables rotary =
      MakeRotaryTables(config, longest, device, packed ? at::kFloat : source.dtype());
  for (const int64_t first = inputs.block; inputs.block < config.num_blocks(); ++inputs.block) {
    if (on_inputs && inputs.block > first) on_inputs(inputs);
    const BlockWeights weights = source.Block(inputs.block);
    const BlockShape& shape = config.blocks[static_cast<size_t>(inputs.block)];
    if (packed) {
      const PackedBlock block(config, shape, weights, most_tokens);
      for (at::Tensor& x : inputs.hidden) x = waiting.Keep(block.Forward(rotary, x));
    } else {
      for (at::Tensor& x : inputs.hidden) {
        x = waiting.Keep(BlockForward(config, shape, weights, rotary, x.to(device)));
      }
    }
    if (on_block_done) on_block_done(inputs.block);
  }
  const at::Tensor norm = source.FinalNorm();
  for (at::Tensor& x : inputs.hidden) {
    x = waiting.Keep(RmsNorm(x.to(device), norm, config.rms_norm_eps));
  }
  return std::move(inputs.hidden);
}

std::vector<at::Tensor> ForwardHidden(WeightSource& source, const std::vector<at::Tensor>& batches,
                                      const std::function<void(int64_t block)>& on_block_done) {
  return ForwardHiddenFrom(source, batches, {}, {}, on_block_done);
}

}  // namespace qpruner::engine
