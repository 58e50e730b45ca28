// A model's weights, handed out one block at a time.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_WEIGHTS_H_
#define QPRUNER_WORKER_ENGINE_MODEL_WEIGHTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "worker/engine/model/linear_kind.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

struct BlockWeights {
  PerLinear<at::Tensor> weight;  // [out, in]
  PerLinear<at::Tensor> bias;    // [out]; undefined where the model has none
  at::Tensor attention_norm;     // [hidden], input_layernorm
  at::Tensor mlp_norm;           // [hidden], post_attention_layernorm
  at::Tensor query_norm;         // [head_dim]; undefined unless query_key_norm
  at::Tensor key_norm;           // [head_dim]; likewise
};

// Gives each block's weights on demand, so that only the block in work need be in memory. Tensors
// are on device(); they may alias the mapped file and must not be written to. Blocks and final norm
// are of dtype(), which is what is computed in. Embedding and head may be of the type they are
// stored in, for they can be larger than any block and are only ever needed in parts: look tokens
// up with Embed, get logits with HeadLogits (decoder.h). Not thread-safe. Throws c10::Error when
// memory runs out; everything about the file was checked at opening.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual at::Device device() const = 0;
  virtual at::ScalarType dtype() const = 0;
  virtual BlockWeights Block(int64_t block) = 0;
  // The same for who has some of the linears' weights in another form: those that are not `wanted`
  // may be undefined, and are not read where that can be spared.
  virtual BlockWeights BlockWith(const LinearSet& /*wanted*/, int64_t block) {
    return Block(block);
  }
  virtual at::Tensor Embedding() = 0;  // [vocab, hidden]
  virtual at::Tensor FinalNorm() = 0;  // [hidden]
  virtual at::Tensor Head() = 0;       // [vocab, hidden]; the embedding if tied
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_WEIGHTS_H_
