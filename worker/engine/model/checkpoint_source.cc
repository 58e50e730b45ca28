#include "worker/engine/model/checkpoint_source.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace qpruner::engine {
namespace {

// Fewer rows are not worth another thread.
constexpr int64_t kRowsPerThread = 64;

class CheckpointSource : public WeightSource {
 public:
  CheckpointSource(std::shared_ptr<const Checkpoint> checkpoint, at::Device device,
                   at::ScalarType dtype)
      : checkpoint_(std::move(checkpoint)), device_(device), dtype_(dtype) {}

  const ModelConfig& config() const override { return checkpoint_->config(); }
  at::Device device() const override { return device_; }
  at::ScalarType dtype() const override { return dtype_; }

  BlockWeights Block(int64_t block) override { return BlockWith(AllLinears(), block); }
  BlockWeights BlockWith(const LinearSet& wanted, int64_t block) override {
    const ModelConfig& config = checkpoint_->config();
    const std::string prefix = absl::StrCat("model.layers.", block, ".");
    BlockWeights weights;
    for (LinearKind kind : kLinearKinds) {
      const std::string name = LinearName(block, kind);
      if (wanted[kind]) weights.weight[kind] = Load(name + ".weight");
      if (LinearHasBias(config, kind)) weights.bias[kind] = Load(name + ".bias");
    }
    weights.attention_norm = Load(prefix + "input_layernorm.weight");
    weights.mlp_norm = Load(prefix + "post_attention_layernorm.weight");
    if (config.query_key_norm) {
      weights.query_norm = Load(prefix + "self_attn.q_norm.weight");
      weights.key_norm = Load(prefix + "self_attn.k_norm.weight");
    }
    return weights;
  }
  at::Tensor Embedding() override { return LoadAsStored("model.embed_tokens.weight"); }
  at::Tensor FinalNorm() override { return Load("model.norm.weight"); }
  at::Tensor Head() override {
    return checkpoint_->config().tie_word_embeddings ? Embedding() : LoadAsStored("lm_head.weight");
  }

 private:
  at::Tensor Load(const std::string& name) const { return Stored(name).to(device_, dtype_); }
  at::Tensor LoadAsStored(const std::string& name) const { return Stored(name).to(device_); }
  // In place in the mapped file where it lies there as a plain tensor; else read from it.
  at::Tensor Stored(const std::string& name) const {
    const CheckpointTensor& tensor = checkpoint_->tensor(name);
    if (tensor.in_place) return TensorFromView(tensor.view(), checkpoint_);
    at::Tensor read = at::empty(tensor.shape, ScalarTypeOf(tensor.dtype));
    const int64_t row_bytes = static_cast<int64_t>(read.nbytes()) / tensor.shape[0];
    auto* const out = static_cast<char*>(read.mutable_data_ptr());
    at::parallel_for(0, tensor.shape[0], kRowsPerThread, [&](int64_t begin, int64_t end) {
      checkpoint_->ReadRows(name, begin, end - begin, out + begin * row_bytes);
    });
    return read;
  }

  const std::shared_ptr<const Checkpoint> checkpoint_;
  const at::Device device_;
  const at::ScalarType dtype_;
};

}  // namespace

at::ScalarType ScalarTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF64:
      return at::kDouble;
    case DType::kI64:
      return at::kLong;
    case DType::kI32:
      return at::kInt;
    case DType::kI16:
      return at::kShort;
    case DType::kI8:
      return at::kChar;
    case DType::kU8:
      return at::kByte;
    case DType::kBool:
      return at::kBool;
  }
  TORCH_CHECK(false, "No such dtype: ", static_cast<int>(dtype));
}

DType DTypeOf(at::ScalarType type) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI64, DType::kI32,
                      DType::kI16, DType::kI8, DType::kU8, DType::kBool}) {
    if (ScalarTypeOf(dtype) == type) return dtype;
  }
  TORCH_CHECK(false, "safetensors has no dtype for ", type);
}

at::Tensor TensorFromView(const TensorView& view, std::shared_ptr<const void> keep_alive) {
  const auto options = at::TensorOptions().dtype(ScalarTypeOf(view.dtype));
  const auto address = reinterpret_cast<uintptr_t>(view.bytes.data());
  if (address % static_cast<uintptr_t>(DTypeSize(view.dtype)) != 0 || view.bytes.empty()) {
    at::Tensor copy = at::empty(view.shape, options);
    std::memcpy(copy.mutable_data_ptr(), view.bytes.data(), view.bytes.size());
    return copy;
  }
  // The mapping is read-only: whoever writes to the tensor is stopped by the kernel.
  return at::from_blob(
      const_cast<char*>(view.bytes.data()), view.shape,
      [keep_alive = std::move(keep_alive)](void*) {}, options);
}

std::string BytesOf(const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
  return std::string(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
}

std::string BytesOf(const at::Tensor& tensor, at::ScalarType dtype) {
  return BytesOf(tensor.detach().to(at::kCPU, dtype));
}

std::unique_ptr<WeightSource> MakeCheckpointSource(std::shared_ptr<const Checkpoint> checkpoint,
                                                   at::Device device, at::ScalarType dtype) {
  return std::make_unique<CheckpointSource>(std::move(checkpoint), device, dtype);
}

}  // namespace qpruner::engine
