// A LoRA adapter in the layout of Hugging Face PEFT.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_PEFT_ADAPTER_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_PEFT_ADAPTER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/model/linear_kind.h"

namespace qpruner::engine {

// W + alpha / rank * B A for each linear that has an A and a B.
struct PeftAdapter {
  int64_t rank = 0;
  double alpha = 0;
  // [block][linear]: A [rank, in], B [out, rank]. Both undefined: the linear is not adapted.
  std::vector<PerLinear<at::Tensor>> a;
  std::vector<PerLinear<at::Tensor>> b;
  // Free text for adapter_config.json: which model the adapter belongs on.
  std::string base_model;
};

// Bytes of the factors in float32, as stored.
int64_t AdapterBytes(const PeftAdapter& adapter);

// Writes adapter_config.json and adapter_model.safetensors (float32) into `folder`, which is made
// if it is missing. Returns their paths relative to it. The adapter belongs on the base that it was
// trained on (`base_model`), not on a merged model. INVALID_ARGUMENT names the linear whose factors
// do not fit the rank, or says that there are none. Other codes: of the failed system call.
absl::StatusOr<std::vector<std::string>> WritePeftAdapter(const std::string& folder,
                                                          const PeftAdapter& adapter);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_PEFT_ADAPTER_H_
