// A Llama model of any size with random weights, written block by block.
#ifndef QPRUNER_BENCH_SYNTHETIC_MODEL_H_
#define QPRUNER_BENCH_SYNTHETIC_MODEL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace qpruner::engine {

// The shape of SmolLM2-1.7B with fewer blocks: 1.51 billion parameters, the embeddings tied.
struct SyntheticModel {
  int64_t blocks = 21;
  int64_t vocab = 49152;
  int64_t hidden = 2048;
  int64_t heads = 32;
  int64_t kv_heads = 32;
  int64_t head_dim = 64;
  int64_t intermediate = 8192;
};

// Writes a Hugging Face folder in bfloat16: a shard a block and one for the rest, their index,
// config.json, and the tokenizer of `tokenizer_folder`. Holds one tensor at a time.
absl::Status WriteSyntheticModel(const std::string& folder, const SyntheticModel& model,
                                 const std::string& tokenizer_folder);

}  // namespace qpruner::engine

#endif  // QPRUNER_BENCH_SYNTHETIC_MODEL_H_
