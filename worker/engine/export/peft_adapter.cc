#include "worker/engine/export/peft_adapter.h"

#include <ATen/ATen.h>

#include <cmath>
#include <functional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr char kConfigFile[] = "adapter_config.json";
constexpr char kWeightsFile[] = "adapter_model.safetensors";

absl::Status CheckFactors(const PeftAdapter& adapter, int64_t block, LinearKind kind) {
  const at::Tensor& a = adapter.a[static_cast<size_t>(block)][kind];
  const at::Tensor& b = adapter.b[static_cast<size_t>(block)][kind];
  if (a.defined() && b.defined() && a.dim() == 2 && b.dim() == 2 && a.size(0) == adapter.rank &&
      b.size(1) == adapter.rank) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("The adapter's A and B must be [rank, in] and [out, rank] with rank ",
                   adapter.rank, ": ", LinearName(block, kind)));
}

// What "target_modules" says: the projections' short names if each is adapted in every block or in
// none, else every linear by its full name. PEFT takes both; the first is what people expect.
std::vector<std::string> TargetModules(const PeftAdapter& adapter) {
  std::set<std::string> short_names, full_names;
  bool same_in_every_block = true;
  for (LinearKind kind : kLinearKinds) {
    size_t blocks = 0;
    for (size_t block = 0; block < adapter.a.size(); ++block) {
      if (!adapter.a[block][kind].defined()) continue;
      ++blocks;
      full_names.insert(LinearName(static_cast<int64_t>(block), kind));
    }
    if (blocks == adapter.a.size()) {
      const std::string suffix = LinearSuffix(kind);
      short_names.insert(suffix.substr(suffix.rfind('.') + 1));
    } else if (blocks > 0) {
      same_in_every_block = false;
    }
  }
  const std::set<std::string>& names = same_in_every_block ? short_names : full_names;
  return {names.begin(), names.end()};
}

nlohmann::json ConfigOf(const PeftAdapter& adapter) {
  nlohmann::json config = {{"peft_type", "LORA"},
                           {"task_type", "CAUSAL_LM"},
                           {"base_model_name_or_path", adapter.base_model},
                           {"r", adapter.rank},
                           {"lora_alpha", adapter.alpha},
                           {"lora_dropout", 0.0},
                           {"target_modules", TargetModules(adapter)},
                           {"bias", "none"},
                           {"fan_in_fan_out", false},
                           {"init_lora_weights", true},
                           {"use_rslora", false},
                           {"use_dora", false},
                           {"modules_to_save", nullptr},
                           {"inference_mode", true}};
  // PEFT declares an integer, and reads a number.
  if (adapter.alpha == std::floor(adapter.alpha)) {
    config["lora_alpha"] = static_cast<int64_t>(adapter.alpha);
  }
  return config;
}

}  // namespace

int64_t AdapterBytes(const PeftAdapter& adapter) {
  int64_t count = 0;
  for (const auto* factors : {&adapter.a, &adapter.b}) {
    for (const PerLinear<at::Tensor>& block : *factors) {
      for (LinearKind kind : kLinearKinds) {
        if (block[kind].defined()) count += block[kind].numel();
      }
    }
  }
  return count * static_cast<int64_t>(sizeof(float));
}

absl::StatusOr<std::vector<std::string>> WritePeftAdapter(const std::string& folder,
                                                          const PeftAdapter& adapter) {
  if (adapter.rank < 1 || adapter.a.size() != adapter.b.size()) {
    return absl::InvalidArgumentError(
        "An adapter needs a rank of at least 1 and as many blocks of A as of B");
  }
  std::vector<TensorToWrite> to_write;
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!adapter.a[block][kind].defined() && !adapter.b[block][kind].defined()) continue;
      RETURN_IF_ERROR(CheckFactors(adapter, static_cast<int64_t>(block), kind));
      const std::string prefix =
          absl::StrCat("base_model.model.", LinearName(static_cast<int64_t>(block), kind));
      for (const auto& [suffix, factor] : {std::pair(".lora_A.weight", adapter.a[block][kind]),
                                           std::pair(".lora_B.weight", adapter.b[block][kind])}) {
        to_write.push_back({.name = absl::StrCat(prefix, suffix),
                            .dtype = DType::kF32,
                            .shape = factor.sizes().vec(),
                            .bytes = [factor = factor] { return BytesOf(factor, at::kFloat); }});
      }
    }
  }
  if (to_write.empty()) {
    return absl::InvalidArgumentError("The adapter has no linear");
  }
  RETURN_IF_ERROR(CreateFolders(folder));
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/", kWeightsFile), std::move(to_write),
                                   {{"format", "pt"}}));
  RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(folder, "/", kConfigFile),
                                   absl::StrCat(ConfigOf(adapter).dump(2), "\n")));
  return std::vector<std::string>{kConfigFile, kWeightsFile};
}

}  // namespace qpruner::engine
