// Feeds bytes to the GGUF reader, takes what it accepts as a model and as a tokenizer, and
// dequantizes every tensor.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/engine/formats/ggml_dequantize.h"
#include "worker/engine/formats/gguf_model.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/formats/gguf_tokenizer.h"

using qpruner::engine::DequantizeGgml;
using qpruner::engine::GgufReader;
using qpruner::engine::ModelConfigFromGguf;
using qpruner::engine::TokenizerFilesFromGguf;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0 || ::write(fd, data, size) != static_cast<ssize_t>(size)) std::abort();
  auto reader = GgufReader::Open(absl::StrCat("/proc/self/fd/", fd));
  ::close(fd);
  if (!reader.ok()) return 0;
  for (const auto& [key, value] : (*reader)->metadata().values()) {
    const auto& metadata = (*reader)->metadata();
    (void)metadata.Integer(key, {}, 0, 1);
    (void)metadata.Number(key, {}, 0, 1);
    (void)metadata.String(key, {});
    (void)metadata.Strings(key);
    (void)metadata.Integers(key);
    (void)metadata.Floats(key);
    (void)metadata.IntegerPerBlock(key, 4, 0, 1);
  }
  (void)ModelConfigFromGguf(**reader);
  (void)TokenizerFilesFromGguf((*reader)->metadata());
  size_t total = 0;
  for (const auto& [name, tensor] : (*reader)->tensors()) {
    total += tensor.bytes.size();
    std::vector<float> values(static_cast<size_t>(tensor.element_count()));
    DequantizeGgml(tensor.type, tensor.bytes.data(), tensor.element_count(), values.data());
  }
  // Every byte belongs to one tensor at most.
  if (total > size) std::abort();
  return 0;
}
