// The folders that FINALIZE leaves, as export.formats asks for them.
//
//   quantized/           always: the base in its packed bytes (export/packed_model.h)
//   model/               HUGGING_FACE: plain weights in the export's dtype
//   compressed-tensors/  COMPRESSED_TENSORS: the packed base
//   bitsandbytes/        BITSANDBYTES: the packed base
//   gguf/                GGUF: model.gguf (gguf_export.h)
//   adapter/             with fine-tuning: the adapter in PEFT's layout. Its
//                        base_model_name_or_path is one of the folders beside it that holds the
//                        weights it belongs on.
//
// Each model folder has a README.md. With export.adapter MERGED the adapter is in model/, too.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_EXPORTS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_EXPORTS_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qpruner/internal/v1/task.pb.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/finetune/lora.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// Whether every export that `spec` asks for can hold a model of this shape in any of `formats`:
// what the server cannot know before the model is read. INVALID_ARGUMENT names the export and the
// rule.
absl::Status CheckExports(const v1::CompressionSpec& spec, const ModelConfig& config,
                          const std::vector<Format>& formats);

// The weights whose scores are reported after fine-tuning, or instead without: those of model/ as
// written, with the adapter merged into them or added on top; without model/, the dequantized base
// with the adapter. `adapter` is null without fine-tuning. Both must outlive it. All are made in
// float32 and rounded once, so what is written does not depend on what the device computes in.
class ExportedWeights {
 public:
  ExportedWeights(const v1::Export& options, QuantizedSource& base, const LoraAdapter* adapter);

  // The base, in float32.
  WeightSource& dequantized() { return *dequantized_; }
  // What model/ holds before it is rounded to the export's dtype. In float32.
  WeightSource& in_model_folder() { return *in_folder_; }
  // What is measured. In what the base computes in.
  WeightSource& measured() { return *measured_; }

 private:
  std::vector<std::unique_ptr<WeightSource>> layers_;
  WeightSource* dequantized_ = nullptr;
  WeightSource* in_folder_ = nullptr;
  WeightSource* measured_ = nullptr;
};

struct ExportContext {
  const v1::CompressionSpec& spec;
  const ModelBytes& bytes;
  const LoraAdapter* adapter;  // Null without fine-tuning.
  WeightSource& unquantized;   // The prepared model: what GGUF's types are made from without one.
  std::function<TokenMetrics(WeightSource&)> measure;
  std::string tokenizer_from;  // The prepared model.
  std::string output_folder;
};

// Writes all of them. `result` has the scores; what the GGUF file measures is added. Codes: of the
// failed system call.
absl::Status WriteExports(const ExportContext& context, QuantizedSource& base,
                          ExportedWeights& weights, internal::v1::FinalizeResult& result);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_EXPORTS_H_
