// The packed weights' exact values, whatever the model computes in.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_DEQUANTIZED_SOURCE_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_DEQUANTIZED_SOURCE_H_

#include "worker/engine/model/wrapped_source.h"
#include "worker/engine/quantize/quantized_source.h"

namespace qpruner::engine {

// A quantized model in float32: linears as Dequantize gives them, not rounded to the 16-bit type
// that a GPU computes in. For what is written out, which must not depend on the device.
class DequantizedSource final : public WrappedSource {
 public:
  // `quantized` must outlive this.
  explicit DequantizedSource(QuantizedSource& quantized)
      : WrappedSource(static_cast<WeightSource&>(quantized)), quantized_(quantized) {}

  at::ScalarType dtype() const override { return at::kFloat; }
  BlockWeights Block(int64_t block) override;
  at::Tensor FinalNorm() override;

 private:
  QuantizedSource& quantized_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_DEQUANTIZED_SOURCE_H_
