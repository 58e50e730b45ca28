// Tensors that wait on the host until a walk comes back for them.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_HOST_STORE_H_
#define QPRUNER_WORKER_ENGINE_MODEL_HOST_STORE_H_

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <memory>

namespace qpruner::engine {

// A backward walk keeps the input of every block: samples x blocks, more than the block in work for
// all but small models. What goes beyond `resident_bytes` waits in files that have no name, in the
// folder for temporary files (TMPDIR): the kernel keeps their pages while there is room and writes
// them out when there is not, which it cannot do with a process's own memory.
// Thread-safe.
class HostStore {
 public:
  static constexpr int64_t kDefaultResidentBytes = int64_t{64} << 20;

  explicit HostStore(int64_t resident_bytes = kDefaultResidentBytes)
      : resident_bytes_(resident_bytes), held_(std::make_shared<std::atomic<int64_t>>(0)) {}
  // For a walk on `device`. On the CPU little stays in memory, for it is the memory that
  // limits.device_memory_bytes bounds; beside another device a sixteenth of what the machine has.
  static HostStore Beside(const at::Device& device);

  // A tensor on the CPU with the content of `tensor`, not to be written to. Its memory or file goes
  // with its last reference, which may outlive this. Throws c10::Error naming the folder if no file
  // can be written there.
  at::Tensor Keep(const at::Tensor& tensor);

  // Bytes of kept tensors that are in the process's memory now.
  int64_t held_bytes() const { return held_->load(); }

 private:
  const int64_t resident_bytes_;
  const std::shared_ptr<std::atomic<int64_t>> held_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_HOST_STORE_H_
