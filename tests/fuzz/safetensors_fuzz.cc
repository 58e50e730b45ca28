// Feeds bytes to the safetensors reader and walks over everything it accepts.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "worker/engine/formats/safetensors_reader.h"

using qpruner::engine::DTypeSize;
using qpruner::engine::SafetensorsReader;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0 || ::write(fd, data, size) != static_cast<ssize_t>(size)) std::abort();
  auto reader = SafetensorsReader::Open(absl::StrCat("/proc/self/fd/", fd));
  ::close(fd);
  if (!reader.ok()) return 0;
  size_t total = 0;
  unsigned sum = 0;
  for (const auto& [name, view] : (*reader)->tensors()) {
    const int64_t bytes = view.element_count() * DTypeSize(view.dtype);
    if (bytes != static_cast<int64_t>(view.bytes.size())) std::abort();
    total += view.bytes.size();
    for (char byte : view.bytes) sum += static_cast<unsigned char>(byte);
  }
  // Every byte belongs to one tensor at most.
  if (total + 8 > size) std::abort();
  static volatile unsigned sink = 0;  // Keeps the reads.
  sink = sink + sum;
  return 0;
}
