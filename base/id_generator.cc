#include "base/id_generator.h"

#include <sys/random.h>

#include <cstdlib>

#include "absl/strings/escaping.h"

namespace qpruner {
namespace {

class KernelIdGenerator final : public IdGenerator {
 public:
  std::string Hex(int bytes) override {
    std::string raw(bytes, '\0');
    size_t filled = 0;
    while (filled < raw.size()) {
      const ssize_t got = getrandom(raw.data() + filled, raw.size() - filled, 0);
      // Only a kernel without randomness gets here; a guessable lease token would be worse.
      if (got < 0) std::abort();
      filled += static_cast<size_t>(got);
    }
    return absl::BytesToHexString(raw);
  }
};

}  // namespace

IdGenerator& SystemIdGenerator() {
  static KernelIdGenerator& generator = *new KernelIdGenerator;
  return generator;
}

}  // namespace qpruner
