#include "worker/engine/model/host_store.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "base/machine_memory.h"

namespace qpruner::engine {
namespace {

// The bytes in a file without a name, mapped for reading. Unmapping frees the file.
void* MapCopy(const char* bytes, size_t size) {
  std::error_code error;
  std::string path = std::filesystem::temp_directory_path(error).string() + "/qpruner-XXXXXX";
  TORCH_CHECK(!error, "There is no folder for temporary files: ", error.message());
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  TORCH_CHECK(fd >= 0, "Cannot create ", path, ": ", std::strerror(errno));
  const absl::Cleanup close = [fd] { ::close(fd); };
  ::unlink(path.c_str());
  for (size_t at = 0; at < size;) {
    const ssize_t written = ::write(fd, bytes + at, size - at);
    if (written < 0 && errno == EINTR) continue;
    TORCH_CHECK(written > 0, "Cannot write ", size, " bytes to ", path, ": ", std::strerror(errno));
    at += static_cast<size_t>(written);
  }
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  TORCH_CHECK(mapped != MAP_FAILED, "Cannot map ", path, ": ", std::strerror(errno));
  return mapped;
}

}  // namespace

HostStore HostStore::Beside(const at::Device& device) {
  if (device.is_cpu()) return HostStore();
  return HostStore(std::max(kDefaultResidentBytes, MachineMemory() / 16));
}

at::Tensor HostStore::Keep(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
  const auto size = static_cast<int64_t>(host.nbytes());
  if (size == 0) return host;
  if (held_->fetch_add(size) + size <= resident_bytes_) {
    return at::from_blob(
        host.data_ptr(), host.sizes(), [host, size, held = held_](void*) { held->fetch_sub(size); },
        host.options());
  }
  held_->fetch_sub(size);
  void* mapped =
      MapCopy(static_cast<const char*>(host.const_data_ptr()), static_cast<size_t>(size));
  return at::from_blob(
      mapped, host.sizes(), [size](void* address) { ::munmap(address, static_cast<size_t>(size)); },
      host.options());
}

}  // namespace qpruner::engine
