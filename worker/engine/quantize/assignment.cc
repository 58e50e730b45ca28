#include "worker/engine/quantize/assignment.h"

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kFixedBytesPerParameter = 2;  // bfloat16

// Calls visit(name, rows, cols) for every linear, in model order.
template <typename Visit>
void ForEachLinear(const ModelConfig& config, const Visit& visit) {
  for (int64_t block = 0; block < config.num_blocks(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      const std::vector<int64_t> shape =
          LinearShape(config, config.blocks[static_cast<size_t>(block)], kind);
      visit(LinearName(block, kind), shape[0], shape[1]);
    }
  }
}

}  // namespace

FormatAssignment UniformAssignment(const ModelConfig& config, const Format& format) {
  FormatAssignment assignment;
  ForEachLinear(config,
                [&](const std::string& name, int64_t, int64_t) { assignment[name] = format; });
  return assignment;
}

absl::Status CheckAssignment(const ModelConfig& config, const FormatAssignment& assignment) {
  std::set<std::string> linears;
  std::string missing;
  ForEachLinear(config, [&](const std::string& name, int64_t, int64_t) {
    linears.insert(name);
    if (missing.empty() && assignment.count(name) == 0) missing = name;
  });
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("The assignment of formats leaves out a linear of the model: ", missing));
  }
  for (const auto& [name, format] : assignment) {
    if (linears.count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("The assignment of formats names a linear that the model of ",
                       config.num_blocks(), " blocks does not have: ", name));
    }
  }
  return absl::OkStatus();
}

ModelBytes CountBytes(const ModelConfig& config, const FormatAssignment& assignment) {
  ModelBytes bytes{.fixed_bytes = FixedBytes(config),
                   .linear_parameter_count = LinearParameterCount(config),
                   .parameter_count = ParameterCount(config)};
  ForEachLinear(config, [&](const std::string& name, int64_t rows, int64_t cols) {
    bytes.linear_bytes += PackedBytes(assignment.at(name), rows, cols);
  });
  return bytes;
}

int64_t FixedBytes(const ModelConfig& config) {
  return kFixedBytesPerParameter * (ParameterCount(config) - LinearParameterCount(config));
}

}  // namespace qpruner::engine
