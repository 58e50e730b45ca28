#include "worker/engine/model/prefetching_source.h"

#include <ATen/ATen.h>
#include <omp.h>
#include <sys/mman.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <utility>

namespace qpruner::engine {
namespace {

// Weights that are used as they lie in the mapped file are read ahead by the kernel.
void ReadAhead(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cpu()) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGE_SIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t first = begin / page * page;
  // Advice: where it cannot be taken nothing is lost.
  ::madvise(reinterpret_cast<void*>(first), begin + tensor.nbytes() - first, MADV_WILLNEED);
}

BlockWeights LoadAhead(WeightSource& base, int64_t block) {
  // The walk's own threads have the cores.
  omp_set_num_threads(1);
  at::NoGradGuard no_grad;
  BlockWeights weights = base.Block(block);
  for (const LinearKind kind : kLinearKinds) ReadAhead(weights.weight[kind]);
  return weights;
}

}  // namespace

PrefetchingSource::PrefetchingSource(std::unique_ptr<WeightSource> base) : base_(std::move(base)) {}

PrefetchingSource::~PrefetchingSource() {
  if (loading_.valid()) loading_.wait();
}

WeightSource& PrefetchingSource::Idle() {
  if (loading_.valid()) loading_.wait();
  return *base_;
}

BlockWeights PrefetchingSource::Block(int64_t block) {
  BlockWeights weights;
  if (loading_.valid() && next_ == block) {
    weights = loading_.get();  // With the exception that loading it threw, if it did.
  } else {
    WeightSource& base = Idle();
    loading_ = {};
    weights = base.Block(block);
  }
  const int64_t next = block + (last_ >= 0 && block < last_ ? -1 : 1);
  // A block that is asked for twice ends one walk and starts the next, in the other direction.
  const int64_t wanted = block == last_ ? block - 1 : next;
  last_ = block;
  if (wanted < 0 || wanted >= config().num_blocks()) return weights;
  next_ = wanted;
  loading_ = std::async(std::launch::async, [this, wanted] { return LoadAhead(*base_, wanted); });
  return weights;
}

BlockWeights PrefetchingSource::BlockWith(const LinearSet& wanted, int64_t block) {
  if (IsAllLinears(wanted)) return Block(block);
  WeightSource& base = Idle();
  loading_ = {};
  last_ = block;
  return base.BlockWith(wanted, block);
}

}  // namespace qpruner::engine
