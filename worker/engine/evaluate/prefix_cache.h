// Hidden states kept from one model to the next that has the same first blocks.
//
// The trials of a search differ in some blocks' formats. Up to the first block in which a model
// differs from an earlier one its hidden states are the same numbers, so they are taken from there.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_PREFIX_CACHE_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_PREFIX_CACHE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// Not thread-safe.
class PrefixCache {
 public:
  // Keeps at most `max_bytes` of hidden states, on the host.
  explicit PrefixCache(int64_t max_bytes) : max_bytes_(max_bytes) {}

  // Exactly what ForwardHidden gives. `text` names the batches and everything that holds for all
  // blocks (dtype, embedding); `blocks` has a name for each block's weights: equal names promise
  // equal weights. `on_block_done` is called for the blocks that are computed; may be empty.
  std::vector<at::Tensor> Forward(WeightSource& source, const std::vector<at::Tensor>& batches,
                                  const std::string& text, const std::vector<std::string>& blocks,
                                  const std::function<void(int64_t block)>& on_block_done = {});

  // Of the last Forward: blocks that were not computed.
  int64_t reused_blocks() const { return reused_blocks_; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::vector<at::Tensor> hidden;  // What the block behind the prefix takes in.
    int64_t bytes = 0;
    int64_t last_use = 0;  // Number of the Forward that used it last.
  };

  // Makes room by dropping what was used longest ago, never what this Forward used: of one model
  // the first boundaries are the ones that others share. False if that is not enough.
  bool MakeRoom(int64_t bytes);

  const int64_t max_bytes_;
  std::map<std::string, Entry> entries_;  // By text and the names of the prefix's blocks.
  int64_t bytes_ = 0;
  int64_t forwards_ = 0;
  int64_t reused_blocks_ = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_PREFIX_CACHE_H_
