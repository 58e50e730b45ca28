#include "worker/engine/model/memory_source.h"

#include <ATen/ATen.h>

#include <utility>

namespace qpruner::engine {
namespace {

void CheckTensor(const at::Tensor& tensor, const std::vector<int64_t>& shape,
                 const at::Tensor& like, const std::string& name) {
  TORCH_CHECK(tensor.defined(), name, " is not given");
  TORCH_CHECK(tensor.sizes() == at::IntArrayRef(shape), name, " has shape ", tensor.sizes(),
              ", its config calls for ", at::IntArrayRef(shape));
  TORCH_CHECK(tensor.device() == like.device() && tensor.scalar_type() == like.scalar_type(), name,
              " differs in device or dtype from the embedding");
}

}  // namespace

MemoryWeightSource::MemoryWeightSource(ModelConfig config, std::vector<BlockWeights> blocks,
                                       at::Tensor embedding, at::Tensor final_norm, at::Tensor head)
    : config_(std::move(config)),
      blocks_(std::move(blocks)),
      embedding_(std::move(embedding)),
      final_norm_(std::move(final_norm)),
      head_(std::move(head)) {
  TORCH_CHECK(static_cast<int64_t>(blocks_.size()) == config_.num_blocks(), "The config has ",
              config_.num_blocks(), " blocks, the weights ", blocks_.size());
  const int64_t hidden = config_.hidden_size;
  CheckTensor(embedding_, {config_.vocab_size, hidden}, embedding_, "model.embed_tokens.weight");
  CheckTensor(final_norm_, {hidden}, embedding_, "model.norm.weight");
  if (head_.defined() || !config_.tie_word_embeddings) {
    CheckTensor(head_, {config_.vocab_size, hidden}, embedding_, "lm_head.weight");
  }
  for (int64_t i = 0; i < config_.num_blocks(); ++i) {
    const BlockWeights& block = blocks_[static_cast<size_t>(i)];
    const BlockShape& shape = config_.blocks[static_cast<size_t>(i)];
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> expected = LinearShape(config_, shape, kind);
      CheckTensor(block.weight[kind], expected, embedding_, LinearName(i, kind));
      if (LinearHasBias(config_, kind)) {
        CheckTensor(block.bias[kind], {expected[0]}, embedding_, LinearName(i, kind) + ".bias");
      }
    }
    CheckTensor(block.attention_norm, {hidden}, embedding_, "input_layernorm");
    CheckTensor(block.mlp_norm, {hidden}, embedding_, "post_attention_layernorm");
    if (config_.query_key_norm) {
      CheckTensor(block.query_norm, {config_.head_dim}, embedding_, "q_norm");
      CheckTensor(block.key_norm, {config_.head_dim}, embedding_, "k_norm");
    }
  }
}

MemoryWeightSource LoadIntoMemory(WeightSource& source) {
  std::vector<BlockWeights> blocks;
  for (int64_t i = 0; i < source.config().num_blocks(); ++i) blocks.push_back(source.Block(i));
  const at::ScalarType dtype = source.dtype();  // There is room, so every use is spared the cast.
  return MemoryWeightSource(
      source.config(), std::move(blocks), source.Embedding().to(dtype), source.FinalNorm(),
      source.config().tie_word_embeddings ? at::Tensor() : source.Head().to(dtype));
}

}  // namespace qpruner::engine
