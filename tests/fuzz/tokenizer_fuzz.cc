// Feeds bytes to the opener of tokenizer.json; what it accepts must encode and decode texts without
// an id beyond the vocabulary.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/durable_file.h"
#include "tests/testing/temp_folder.h"
#include "worker/engine/tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const qpruner::TempFolder folder("/dev/shm");
  constexpr int64_t kVocabulary = 512;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  if (!qpruner::WriteFileDurably(folder.path() + "/tokenizer.json", bytes).ok()) std::abort();
  const auto tokenizer = qpruner::engine::Tokenizer::Open(folder.path(), kVocabulary);
  if (!tokenizer.ok()) return 0;
  for (const char* text : {"", "Once upon a time", " \t\n 12,345", "na\xc3\xafve \xe2\x98\xbe"}) {
    const auto ids = (*tokenizer)->EncodeDocument(text);
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) {
      if (id < 0 || id >= kVocabulary) std::abort();
    }
    (void)(*tokenizer)->Decode(*ids);
  }
  return 0;
}
