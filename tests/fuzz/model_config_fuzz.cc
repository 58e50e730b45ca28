// Feeds bytes to the parser of config.json; what it accepts must survive being written and read.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "worker/engine/model/model_config.h"

using qpruner::engine::ExpectedTensors;
using qpruner::engine::ModelConfigToJson;
using qpruner::engine::ParseModelConfig;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto config = ParseModelConfig({reinterpret_cast<const char*>(data), size});
  if (!config.ok()) return 0;
  auto again = ParseModelConfig(ModelConfigToJson(*config, "float32").dump());
  if (!again.ok() || again->blocks != config->blocks) std::abort();
  for (const auto& tensor : ExpectedTensors(*config)) {
    int64_t count = 1;
    for (int64_t dimension : tensor.shape) {
      if (dimension <= 0 || __builtin_mul_overflow(count, dimension, &count)) std::abort();
    }
  }
  return 0;
}
