// Quantizes a model for fine-tuning: the packed base and the adapter that starts on it.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_

#include <functional>
#include <vector>

#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

enum class AdapterInit {
  kZero,   // B = 0: the model starts as quantized.
  kLoftq,  // The adapter starts as the low-rank part of the quantization error.
};

struct AdapterStart {
  std::vector<PerLinear<PackedWeight>> base;  // [block]: what is stored. CPU.
  LoraAdapter adapter;                        // On the source's device.
  // Root of the summed squares over all linears of the distance to the weights of `source`, without
  // and with the adapter.
  double error_quantized = 0;
  double error = 0;
};

// One block at a time. formats[block][linear]. With kLoftq, linears in bfloat16 start as with
// kZero: there is no error worth a direction. `on_progress(fraction)` may be empty.
AdapterStart QuantizeWithAdapter(WeightSource& source,
                                 const std::vector<PerLinear<Format>>& formats, AdapterInit init,
                                 int loftq_iterations, const LoraOptions& options,
                                 const std::function<void(double fraction)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_
