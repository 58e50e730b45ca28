// The adapter that fine-tuning of a quantized model starts with.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_

#include <functional>

#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

enum class AdapterInit {
  kZero,   // B = 0: the model starts as quantized.
  kLoftq,  // The adapter starts as the low-rank part of the quantization error.
};

struct AdapterStart {
  LoraAdapter adapter;  // On the source's device.
  // Distance to the weights of `source`, over all linears (root of the summed squares): of the
  // quantized weights alone, and of base and adapter together.
  double error_quantized = 0;
  double error = 0;
};

// Makes the adapter for `quantized`, which must have been created over `source`, one block at a
// time. With kLoftq every linear's stored weight is replaced (QuantizedSource::SetPacked) by the
// base that belongs to its adapter; after one iteration that is the same weight. Those that come
// from the source's store stay, and allow one iteration only: throws c10::Error for more. Linears
// in bfloat16 start as with kZero: there is no error worth a direction; linears without an adapter
// stay as they were quantized. `on_progress(fraction)` may be empty.
AdapterStart StartAdapter(WeightSource& source, QuantizedSource& quantized, AdapterInit init,
                          int loftq_iterations, const LoraOptions& options,
                          const std::function<void(double fraction)>& on_progress = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_ADAPTER_START_H_
