#include "worker/engine/finetune/block_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "worker/engine/finetune/block_loops.h"

namespace qpruner::engine {
namespace {

// Elements that make it worth waking another thread.
constexpr int64_t kGrain = 1 << 15;

bool OwnLoops(const at::Tensor& x) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.stride(-1) == 1;
}

int64_t RowGrain(int64_t width) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
}

at::Tensor Rotated(const at::Tensor& x, const RotaryTables& rotary, int64_t length, bool back) {
  const at::Tensor cos = rotary.cos.narrow(0, 0, length);
  const at::Tensor sin = rotary.sin.narrow(0, 0, length);
  const int64_t half = x.size(-1) / 2;
  if (!back) {
    return x * cos + at::cat({-x.narrow(-1, half, half), x.narrow(-1, 0, half)}, -1) * sin;
  }
  const at::Tensor y = x * sin;
  return x * cos + at::cat({y.narrow(-1, half, half), -y.narrow(-1, 0, half)}, -1);
}

}  // namespace

at::Tensor& Reuse(at::Tensor& slot, at::IntArrayRef shape, const at::TensorOptions& options) {
  if (!slot.defined() || slot.sizes() != shape ||
      slot.scalar_type() != c10::typeMetaToScalarType(options.dtype()) ||
      slot.device() != options.device()) {
    slot = at::empty(shape, options);
  }
  return slot;
}

void RmsNormForward(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& value,
                    at::Tensor& inverse_rms) {
  const int64_t rows = x.size(0), width = x.size(1);
  Reuse(value, {rows, width}, x.options());
  if (!OwnLoops(x)) {
    const at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
    inverse_rms = at::rsqrt(at::mean(wide * wide, -1) + eps);
    value.copy_((wide * inverse_rms.unsqueeze(1)).to(x.scalar_type()) * weight);
    return;
  }
  Reuse(inverse_rms, {rows}, x.options());
  const at::Tensor w = weight.contiguous();
  const float* in = x.data_ptr<float>();
  float* out = value.data_ptr<float>();
  float* scales = inverse_rms.data_ptr<float>();
  const int64_t stride = x.stride(0);
  at::parallel_for(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* source = in + row * stride;
      const float mean = SquareSum(source, width) / static_cast<float>(width);
      scales[row] = 1.0f / std::sqrt(mean + static_cast<float>(eps));
      ScaleRow(source, w.data_ptr<float>(), scales[row], width, out + row * width);
    }
  });
}

void AddRmsNormBackward(const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& inverse_rms, const at::Tensor& value_gradient,
                        at::Tensor& sum) {
  // With u = g w and r = 1 / rms(x): dx = r u - x r^3 mean(u x).
  const int64_t rows = x.size(0), width = x.size(1);
  if (!OwnLoops(x)) {
    const at::ScalarType wide = inverse_rms.scalar_type();
    const at::Tensor r = inverse_rms.unsqueeze(1);
    const at::Tensor u = value_gradient.to(wide) * weight.to(wide);
    const at::Tensor mean = at::mean(u * x.to(wide), -1, /*keepdim=*/true);
    sum.add_((r * u - x.to(wide) * (r * r * r * mean)).to(sum.scalar_type()));
    return;
  }
  const at::Tensor w = weight.contiguous();
  const float* in = x.data_ptr<float>();
  const float* gradient = value_gradient.data_ptr<float>();
  const float* scales = inverse_rms.data_ptr<float>();
  float* out = sum.data_ptr<float>();
  const int64_t stride = x.stride(0), gradient_stride = value_gradient.stride(0);
  at::parallel_for(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* source = in + row * stride;
      const float* g = gradient + row * gradient_stride;
      const float r = scales[row];
      const float mean =
          TripleDot(g, w.data_ptr<float>(), source, width) / static_cast<float>(width);
      AddNormGradientRow(source, w.data_ptr<float>(), g, r, r * r * r * mean, width,
                         out + row * width);
    }
  });
}

void SplitHeads(const at::Tensor& projection, const ProjectionLayout& layout,
                const RotaryTables* rotary, at::Tensor& heads) {
  const int64_t batch = layout.batch, length = layout.length, count = layout.heads;
  const int64_t dim = layout.head_dim, repeats = layout.repeats, padded = layout.padded_dim;
  if (!OwnLoops(projection)) {
    at::Tensor x = projection.reshape({batch, length, count, dim}).transpose(1, 2);
    if (rotary != nullptr) x = Rotated(x, *rotary, length, false);
    x = x.unsqueeze(2)
            .expand({batch, count, repeats, length, dim})
            .reshape({batch, count * repeats, length, dim});
    heads = padded == dim ? x.contiguous() : at::constant_pad_nd(x, {0, padded - dim});
    return;
  }
  Reuse(heads, {batch, count * repeats, length, padded}, projection.options());
  const float* in = projection.data_ptr<float>();
  const int64_t stride = projection.stride(0);
  float* out = heads.data_ptr<float>();
  const float* cos = rotary == nullptr ? nullptr : rotary->cos.data_ptr<float>();
  const float* sin = rotary == nullptr ? nullptr : rotary->sin.data_ptr<float>();
  at::parallel_for(0, batch * count, RowGrain(length * dim), [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t b = job / count, head = job % count;
      float* first = out + (b * count + head) * repeats * length * padded;
      for (int64_t position = 0; position < length; ++position) {
        const float* source = in + (b * length + position) * stride + head * dim;
        float* target = first + position * padded;
        if (cos != nullptr) {
          RotateRow(source, cos + position * dim, sin + position * dim, dim / 2, target);
        } else {
          std::memcpy(target, source, static_cast<size_t>(dim) * sizeof(float));
        }
        if (padded > dim) {
          std::memset(target + dim, 0, static_cast<size_t>(padded - dim) * sizeof(float));
        }
      }
      for (int64_t copy = 1; copy < repeats; ++copy) {
        std::memcpy(first + copy * length * padded, first,
                    static_cast<size_t>(length * padded) * sizeof(float));
      }
    }
  });
}

void SplitHeadsBackward(const at::Tensor& gradient, const ProjectionLayout& layout,
                        const RotaryTables* rotary, at::Tensor projection_gradient) {
  const int64_t batch = layout.batch, length = layout.length, count = layout.heads;
  const int64_t dim = layout.head_dim, repeats = layout.repeats;
  if (!OwnLoops(gradient)) {
    at::Tensor g = gradient.narrow(-1, 0, dim).reshape({batch, count, repeats, length, dim}).sum(2);
    if (rotary != nullptr) g = Rotated(g, *rotary, length, true);
    projection_gradient.copy_(g.transpose(1, 2).reshape({batch * length, count * dim}));
    return;
  }
  const float* in = gradient.data_ptr<float>();
  const int64_t by_batch = gradient.stride(0), by_head = gradient.stride(1),
                by_position = gradient.stride(2);
  float* out = projection_gradient.data_ptr<float>();
  const int64_t stride = projection_gradient.stride(0);
  const float* cos = rotary == nullptr ? nullptr : rotary->cos.data_ptr<float>();
  const float* sin = rotary == nullptr ? nullptr : rotary->sin.data_ptr<float>();
  at::parallel_for(
      0, batch * length, RowGrain(count * dim * repeats), [&](int64_t begin, int64_t end) {
        std::vector<float> sum(static_cast<size_t>(dim));
        for (int64_t row = begin; row < end; ++row) {
          const int64_t b = row / length, position = row % length;
          for (int64_t head = 0; head < count; ++head) {
            const float* first =
                in + b * by_batch + head * repeats * by_head + position * by_position;
            const float* g = first;
            if (repeats > 1) {
              std::memcpy(sum.data(), first, sum.size() * sizeof(float));
              for (int64_t copy = 1; copy < repeats; ++copy) {
                AddRow(first + copy * by_head, dim, sum.data());
              }
              g = sum.data();
            }
            float* target = out + row * stride + head * dim;
            if (cos != nullptr) {
              RotateBackRow(g, cos + position * dim, sin + position * dim, dim / 2, target);
            } else {
              std::memcpy(target, g, static_cast<size_t>(dim) * sizeof(float));
            }
          }
        }
      });
}

void SwiGluForward(const at::Tensor& gate, const at::Tensor& up, at::Tensor& sigmoid,
                   at::Tensor& activation) {
  Reuse(sigmoid, gate.sizes(), gate.options());
  Reuse(activation, gate.sizes(), gate.options());
  at::sigmoid_out(sigmoid, gate);
  if (!OwnLoops(gate)) {
    activation.copy_(gate * sigmoid * up);
    return;
  }
  const int64_t rows = gate.size(0), width = gate.size(1);
  at::parallel_for(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      SwiGluRow(gate.data_ptr<float>() + row * gate.stride(0),
                up.data_ptr<float>() + row * up.stride(0), sigmoid.data_ptr<float>() + row * width,
                width, activation.data_ptr<float>() + row * width);
    }
  });
}

void SwiGluBackward(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& sigmoid,
                    const at::Tensor& activation_gradient, at::Tensor gate_gradient,
                    at::Tensor up_gradient) {
  if (!OwnLoops(gate)) {
    const at::Tensor silu = gate * sigmoid;
    up_gradient.copy_(activation_gradient * silu);
    gate_gradient.copy_(activation_gradient * up * (sigmoid + silu * (1 - sigmoid)));
    return;
  }
  const int64_t rows = gate.size(0), width = gate.size(1);
  at::parallel_for(0, rows, RowGrain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      SwiGluBackwardRow(gate.data_ptr<float>() + row * gate.stride(0),
                        up.data_ptr<float>() + row * up.stride(0),
                        sigmoid.data_ptr<float>() + row * width,
                        activation_gradient.data_ptr<float>() + row * activation_gradient.stride(0),
                        width, gate_gradient.data_ptr<float>() + row * gate_gradient.stride(0),
                        up_gradient.data_ptr<float>() + row * up_gradient.stride(0));
    }
  });
}

}  // namespace qpruner::engine
