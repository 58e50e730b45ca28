#include "worker/engine/gradient/random_model.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <utility>

namespace qpruner::engine {

MemoryWeightSource RandomModel(const RandomModelOptions& options) {
  at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const auto normal = [&](std::vector<int64_t> shape, double deviation) {
    return at::empty(shape, at::kDouble).normal_(0, deviation, generator).to(options.dtype);
  };
  // Norm weights around 1, so that a missing one would show.
  const auto norm = [&](int64_t width) {
    return (1 + normal({width}, 0.2).to(at::kDouble)).to(options.dtype);
  };
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = options.vocab;
  config.hidden_size = options.hidden;
  config.head_dim = options.head_dim;
  config.max_position_embeddings = 128;
  config.rms_norm_eps = 1e-5;
  config.query_key_value_bias = options.biases;
  config.output_bias = options.biases;
  config.blocks.assign(options.blocks,
                       BlockShape{options.heads, options.kv_heads, options.intermediate});
  std::vector<BlockWeights> blocks(options.blocks);
  for (int64_t block = 0; block < options.blocks; ++block) {
    BlockWeights& weights = blocks[block];
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> shape = LinearShape(config, config.blocks[block], kind);
      weights.weight[kind] = normal(shape, 0.4);
      if (LinearHasBias(config, kind)) weights.bias[kind] = normal({shape[0]}, 0.2);
    }
    weights.attention_norm = norm(options.hidden);
    weights.mlp_norm = norm(options.hidden);
  }
  at::Tensor embedding = normal({options.vocab, options.hidden}, 1);
  at::Tensor head = normal({options.vocab, options.hidden}, 0.5);
  return MemoryWeightSource(std::move(config), std::move(blocks), std::move(embedding),
                            norm(options.hidden), std::move(head));
}

TokenBatch RandomBatch(const std::vector<int64_t>& lengths, int64_t vocab, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto rows = static_cast<int64_t>(lengths.size());
  TokenBatch batch;
  batch.ids = at::zeros({rows, *std::max_element(lengths.begin(), lengths.end())}, at::kLong);
  batch.lengths = at::tensor(lengths, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    batch.ids[row].narrow(0, 0, lengths[row]).random_(0, vocab, generator);
    batch.rows.push_back(row);
  }
  return batch;
}

std::vector<TokenBatch> SplitRows(const TokenBatch& batch) {
  std::vector<TokenBatch> rows;
  for (int64_t row = 0; row < batch.ids.size(0); ++row) {
    const int64_t length = batch.lengths[row].item<int64_t>();
    rows.push_back(
        {batch.ids.narrow(0, row, 1).narrow(1, 0, length), batch.lengths.narrow(0, row, 1), {row}});
  }
  return rows;
}

at::Tensor Logits(WeightSource& source, const at::Tensor& ids, const LinearFunction& linear) {
  const ModelConfig& config = source.config();
  const RotaryTables rotary =
      MakeRotaryTables(config, ids.size(1), source.device(), source.dtype());
  at::Tensor hidden = Embed(source, ids);
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    hidden =
        BlockForward(config, config.blocks[block], source.Block(block), rotary, hidden, linear);
  }
  hidden = RmsNorm(hidden, source.FinalNorm(), config.rms_norm_eps);
  return at::matmul(hidden, source.Head().to(hidden.scalar_type()).t());
}

}  // namespace qpruner::engine
