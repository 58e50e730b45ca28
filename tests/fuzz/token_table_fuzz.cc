// Feeds bytes to the reader of token files; what it accepts must not let in what it does not list.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "server/auth/token_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto table =
      qpruner::server::TokenTable::Parse({reinterpret_cast<const char*>(data), size});
  if (table.ok() && table->Find("a token of nobody", absl::FromUnixSeconds(0)).ok()) std::abort();
  return 0;
}
