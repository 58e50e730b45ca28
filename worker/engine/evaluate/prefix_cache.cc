#include "worker/engine/evaluate/prefix_cache.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/engine/model/forward_walk.h"

namespace qpruner::engine {

bool PrefixCache::MakeRoom(int64_t bytes) {
  while (bytes_ + bytes > max_bytes_) {
    const auto oldest = std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
    if (oldest == entries_.end() || oldest->second.last_use == forwards_) return false;
    bytes_ -= oldest->second.bytes;
    entries_.erase(oldest);
  }
  return true;
}

std::vector<at::Tensor> PrefixCache::Forward(WeightSource& source,
                                             const std::vector<at::Tensor>& batches,
                                             const std::string& text,
                                             const std::vector<std::string>& blocks,
                                             const std::function<void(int64_t)>& on_block_done) {
  const int64_t count = source.config().num_blocks();
  TORCH_CHECK(static_cast<int64_t>(blocks.size()) == count, "Names of ", blocks.size(),
              " blocks for ", count);
  ++forwards_;
  // keys[b]: of what block b takes in. Lengths keep the names apart, whatever is in them.
  std::vector<std::string> keys = {absl::StrCat(text.size(), ":", text)};
  for (const std::string& block : blocks) {
    keys.push_back(absl::StrCat(keys.back(), "|", block.size(), ":", block));
  }
  BlockInputs start;
  for (int64_t block = 1; block < count; ++block) {
    const auto found = entries_.find(keys[static_cast<size_t>(block)]);
    if (found == entries_.end()) continue;
    found->second.last_use = forwards_;
    start = {block, found->second.hidden};
  }
  reused_blocks_ = start.block;
  const auto keep = [&](const BlockInputs& inputs) {
    Entry entry{inputs.hidden, 0, forwards_};
    for (const at::Tensor& hidden : inputs.hidden) {
      entry.bytes += static_cast<int64_t>(hidden.nbytes());
    }
    if (!MakeRoom(entry.bytes)) return;
    bytes_ += entry.bytes;
    entries_.emplace(keys[static_cast<size_t>(inputs.block)], std::move(entry));
  };
  return ForwardHiddenFrom(source, batches, std::move(start), keep, on_block_done);
}

}  // namespace qpruner::engine
