#include "worker/engine/finetune/adapted_block.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>

namespace qpruner::engine {
namespace {

constexpr std::array<std::array<LinearKind, 3>, kLinearStackCount> kMembers = {{
    {LinearKind::kQuery, LinearKind::kKey, LinearKind::kValue},
    {LinearKind::kOutput},
    {LinearKind::kGate, LinearKind::kUp},
    {LinearKind::kDown},
}};
constexpr std::array<size_t, kLinearStackCount> kMemberCount = {3, 1, 2, 1};

size_t At(LinearStackKind kind) { return static_cast<size_t>(kind); }

at::Tensor AdaptedTo(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() ? tensor.to(dtype) : tensor;
}

// Attention and its derivative: on the CPU by the flash kernels, elsewhere by whatever
// scaled_dot_product_attention picks there, through a graph of its own.
void Attend(double scale, BlockTape& tape) {
  if (tape.query.device().is_cpu()) {
    std::tie(tape.attention, tape.log_sum_exp) = at::_scaled_dot_product_flash_attention_for_cpu(
        tape.query, tape.key, tape.value, /*dropout_p=*/0.0, /*is_causal=*/true,
        /*attn_mask=*/{}, scale);
    return;
  }
  at::AutoGradMode enable_grad(true);
  for (at::Tensor* leaf : {&tape.query, &tape.key, &tape.value}) {
    *leaf = leaf->detach().requires_grad_(true);
  }
  tape.attention = at::scaled_dot_product_attention(tape.query, tape.key, tape.value, {}, 0.0,
                                                    /*is_causal=*/true, scale);
}

std::array<at::Tensor, 3> AttendBackward(const at::Tensor& gradient, double scale,
                                         const BlockTape& tape) {
  if (tape.query.device().is_cpu()) {
    const auto [query, key, value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, tape.query, tape.key, tape.value, tape.attention, tape.log_sum_exp,
        /*dropout_p=*/0.0, /*is_causal=*/true, /*attn_mask=*/{}, scale);
    return {query, key, value};
  }
  const auto found = torch::autograd::grad({tape.attention}, {tape.query, tape.key, tape.value},
                                           {gradient}, /*retain_graph=*/true);
  return {found[0], found[1], found[2]};
}

}  // namespace

int64_t BlockTape::bytes() const {
  int64_t sum = 0;
  for (const at::Tensor* tensor : {&input, &attention_rms, &mlp_rms, &query_rms, &key_rms, &query,
                                   &key, &value, &attention, &log_sum_exp, &residual, &sigmoid}) {
    if (tensor->defined()) sum += static_cast<int64_t>(tensor->nbytes());
  }
  for (const auto* stacks : {&read, &wrote}) {
    for (const at::Tensor& tensor : *stacks) {
      if (tensor.defined()) sum += static_cast<int64_t>(tensor.nbytes());
    }
  }
  return sum;
}

AdaptedBlock::AdaptedBlock(const ModelConfig& config, const BlockShape& shape,
                           const BlockWeights& weights, at::ScalarType dtype)
    : config_(config), shape_(shape) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < kLinearStackCount; ++i) {
    Stack& stack = stacks_[i];
    std::vector<at::Tensor> biases;
    bool biased = false;
    for (size_t j = 0; j < kMemberCount[i]; ++j) {
      const LinearKind kind = kMembers[i][j];
      const at::Tensor& weight = weights.weight[kind];
      const at::Tensor& bias = weights.bias[kind];
      stack.members.push_back(
          {.kind = kind, .first = stack.outputs, .out = weight.size(0), .base = weight.to(dtype)});
      stack.outputs += weight.size(0);
      biased = biased || bias.defined();
      biases.push_back(bias.defined() ? bias.to(dtype)
                                      : at::zeros({weight.size(0)}, weight.options().dtype(dtype)));
    }
    if (biased) stack.bias = at::cat(biases);
  }
  attention_norm_ = weights.attention_norm.to(dtype);
  mlp_norm_ = weights.mlp_norm.to(dtype);
  query_norm_ = AdaptedTo(weights.query_norm, dtype);
  key_norm_ = AdaptedTo(weights.key_norm, dtype);
}

void AdaptedBlock::SetAdapter(const LoraAdapter& adapter, int64_t block) {
  at::NoGradGuard no_grad;
  scale_ = adapter.scale();
  rank_ = adapter.rank;
  const PerLinear<at::Tensor>& a = adapter.a[static_cast<size_t>(block)];
  const PerLinear<at::Tensor>& b = adapter.b[static_cast<size_t>(block)];
  for (Stack& stack : stacks_) {
    int64_t rows = stack.outputs;
    for (Member& member : stack.members) {
      if (!a[member.kind].defined()) continue;
      member.first_low = rows;
      rows += rank_;
    }
    stack.low = rows - stack.outputs;
    if (!stack.weight.defined()) {
      const at::Tensor& first = stack.members.front().base;
      stack.weight = at::empty({rows, first.size(1)}, first.options());
      for (Member& member : stack.members) {
        stack.weight.narrow(0, member.first, member.out).copy_(member.base);
        member.base.reset();
      }
      if (stack.bias.defined()) {
        stack.bias = at::cat({stack.bias, at::zeros({stack.low}, stack.bias.options())});
      }
    }
    TORCH_CHECK(stack.weight.size(0) == rows, "The adapter's rank or targets have changed");
    for (Member& member : stack.members) {
      if (member.first_low < 0) continue;
      member.a = a[member.kind].detach().to(stack.weight.scalar_type());
      member.b = b[member.kind].detach().to(stack.weight.scalar_type());
      stack.weight.narrow(0, member.first_low, rank_).copy_(member.a);
    }
  }
}

ProjectionLayout AdaptedBlock::QueryLayout(const BlockTape& tape) const {
  return {.batch = tape.batch,
          .length = tape.length,
          .heads = shape_.num_heads,
          .head_dim = config_.head_dim,
          .repeats = 1,
          .padded_dim = std::max(config_.head_dim, kNarrowestHead)};
}

ProjectionLayout AdaptedBlock::KeyLayout(const BlockTape& tape) const {
  ProjectionLayout layout = QueryLayout(tape);
  layout.heads = shape_.num_kv_heads;
  layout.repeats = shape_.num_heads / shape_.num_kv_heads;
  return layout;
}

void AdaptedBlock::ForwardStack(LinearStackKind kind, const AdapterDropout* dropout,
                                BlockTape& tape) const {
  const Stack& stack = stacks_[At(kind)];
  const at::Tensor& x = tape.read[At(kind)];
  at::Tensor& y = tape.wrote[At(kind)];
  const int64_t columns = stack.outputs + stack.low;
  Reuse(y, {x.size(0), columns}, x.options());
  if (stack.bias.defined()) {
    at::addmm_out(y, stack.bias, x, stack.weight.t());
  } else {
    at::mm_out(y, x, stack.weight.t());
  }
  for (const Member& member : stack.members) {
    if (member.first_low < 0) continue;
    at::Tensor low = y.narrow(1, member.first_low, rank_);
    if (dropout != nullptr) low.copy_(at::mm(dropout->Apply(member.kind, x), member.a.t()));
    y.narrow(1, member.first, member.out).addmm_(low, member.b.t(), 1, scale_);
  }
}

void AdaptedBlock::BackwardStack(LinearStackKind kind, const AdapterDropout* dropout,
                                 const BlockTape& tape, BackwardBuffers& buffers,
                                 BlockGradients& sums) const {
  const Stack& stack = stacks_[At(kind)];
  const at::Tensor& x = tape.read[At(kind)];
  const at::Tensor& y = tape.wrote[At(kind)];
  at::Tensor& dy = buffers.wrote_gradient[At(kind)];
  at::Tensor& dx = Reuse(buffers.read_gradient[At(kind)], x.sizes(), x.options());
  const bool exact = x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf;
  const auto add_product = [&](at::Tensor& sum, const at::Tensor& left, const at::Tensor& right,
                               double factor) {
    if (exact && sum.scalar_type() == left.scalar_type()) {
      sum.addmm_(left, right, 1, factor);
    } else {
      sum.add_(at::mm(left, right).to(sum.scalar_type()), factor);
    }
  };
  for (const Member& member : stack.members) {
    if (member.first_low < 0) continue;
    const at::Tensor out_gradient = dy.narrow(1, member.first, member.out);
    add_product(sums.b[member.kind], out_gradient.t(), y.narrow(1, member.first_low, rank_),
                scale_);
    at::Tensor low_gradient = dy.narrow(1, member.first_low, rank_);
    low_gradient.addmm_(out_gradient, member.b, /*beta=*/0, /*alpha=*/scale_);
  }
  if (dropout == nullptr || stack.low == 0) {
    if (stack.low > 0) {
      const at::Tensor a_gradients = at::mm(dy.narrow(1, stack.outputs, stack.low).t(), x);
      for (const Member& member : stack.members) {
        if (member.first_low < 0) continue;
        sums.a[member.kind].add_(a_gradients.narrow(0, member.first_low - stack.outputs, rank_));
      }
    }
    at::mm_out(dx, dy, stack.weight);
    return;
  }
  at::mm_out(dx, dy.narrow(1, 0, stack.outputs), stack.weight.narrow(0, 0, stack.outputs));
  for (const Member& member : stack.members) {
    if (member.first_low < 0) continue;
    const at::Tensor low_gradient = dy.narrow(1, member.first_low, rank_);
    add_product(sums.a[member.kind], low_gradient.t(), dropout->Apply(member.kind, x), 1);
    dx.add_(dropout->Apply(member.kind, at::mm(low_gradient, member.a)));
  }
}

at::Tensor AdaptedBlock::Forward(const at::Tensor& hidden, const RotaryTables& rotary,
                                 const AdapterDropout* dropout, BlockTape& tape) const {
  at::NoGradGuard no_grad;
  tape.batch = hidden.size(0);
  tape.length = hidden.size(1);
  const int64_t rows = tape.batch * tape.length;
  const double attention_scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  tape.input = hidden.reshape({rows, hidden.size(2)});

  // Attention.
  RmsNormForward(tape.input, attention_norm_, config_.rms_norm_eps,
                 tape.read[At(LinearStackKind::kQueryKeyValue)], tape.attention_rms);
  ForwardStack(LinearStackKind::kQueryKeyValue, dropout, tape);
  const Stack& projections = stacks_[At(LinearStackKind::kQueryKeyValue)];
  const auto projection = [&](size_t member) {
    return tape.wrote[At(LinearStackKind::kQueryKeyValue)].narrow(
        1, projections.members[member].first, projections.members[member].out);
  };
  at::Tensor query = projection(0), key = projection(1);
  if (config_.query_key_norm) {
    at::Tensor normed_query, normed_key;
    RmsNormForward(query.reshape({-1, config_.head_dim}), query_norm_, config_.rms_norm_eps,
                   normed_query, tape.query_rms);
    RmsNormForward(key.reshape({-1, config_.head_dim}), key_norm_, config_.rms_norm_eps, normed_key,
                   tape.key_rms);
    query = normed_query.view({rows, -1});
    key = normed_key.view({rows, -1});
  }
  SplitHeads(query, QueryLayout(tape), &rotary, tape.query);
  SplitHeads(key, KeyLayout(tape), &rotary, tape.key);
  SplitHeads(projection(2), KeyLayout(tape), nullptr, tape.value);
  Attend(attention_scale, tape);
  at::Tensor& mixed = Reuse(tape.read[At(LinearStackKind::kOutput)],
                            {rows, shape_.num_heads * config_.head_dim}, hidden.options());
  mixed.view({tape.batch, tape.length, shape_.num_heads, config_.head_dim})
      .copy_(tape.attention.detach().narrow(-1, 0, config_.head_dim).transpose(1, 2));
  ForwardStack(LinearStackKind::kOutput, dropout, tape);
  const int64_t width = tape.input.size(1);
  Reuse(tape.residual, {rows, width}, hidden.options());
  at::add_out(tape.residual, tape.input,
              tape.wrote[At(LinearStackKind::kOutput)].narrow(1, 0, width));

  // MLP.
  RmsNormForward(tape.residual, mlp_norm_, config_.rms_norm_eps,
                 tape.read[At(LinearStackKind::kGateUp)], tape.mlp_rms);
  ForwardStack(LinearStackKind::kGateUp, dropout, tape);
  const at::Tensor& gate_up = tape.wrote[At(LinearStackKind::kGateUp)];
  const int64_t mlp = stacks_[At(LinearStackKind::kGateUp)].members[0].out;
  SwiGluForward(gate_up.narrow(1, 0, mlp), gate_up.narrow(1, mlp, mlp), tape.sigmoid,
                tape.read[At(LinearStackKind::kDown)]);
  ForwardStack(LinearStackKind::kDown, dropout, tape);
  return at::add(tape.residual, tape.wrote[At(LinearStackKind::kDown)].narrow(1, 0, width))
      .view(hidden.sizes());
}

at::Tensor AdaptedBlock::Backward(const at::Tensor& output_gradient, const RotaryTables& rotary,
                                  const AdapterDropout* dropout, const BlockTape& tape,
                                  BackwardBuffers& buffers, BlockGradients& sums) const {
  at::NoGradGuard no_grad;
  const int64_t rows = tape.batch * tape.length;
  const int64_t width = tape.input.size(1);
  const double attention_scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
  const auto wrote_gradient = [&](LinearStackKind kind) -> at::Tensor& {
    const Stack& stack = stacks_[At(kind)];
    return Reuse(buffers.wrote_gradient[At(kind)], {rows, stack.outputs + stack.low},
                 tape.input.options());
  };
  // Becomes dL/dresidual, then dL/dinput.
  at::Tensor gradient = output_gradient.reshape({rows, width}).clone();

  // MLP.
  wrote_gradient(LinearStackKind::kDown).narrow(1, 0, width).copy_(gradient);
  BackwardStack(LinearStackKind::kDown, dropout, tape, buffers, sums);
  const at::Tensor& gate_up = tape.wrote[At(LinearStackKind::kGateUp)];
  const int64_t mlp = stacks_[At(LinearStackKind::kGateUp)].members[0].out;
  at::Tensor& gate_up_gradient = wrote_gradient(LinearStackKind::kGateUp);
  SwiGluBackward(gate_up.narrow(1, 0, mlp), gate_up.narrow(1, mlp, mlp), tape.sigmoid,
                 buffers.read_gradient[At(LinearStackKind::kDown)],
                 gate_up_gradient.narrow(1, 0, mlp), gate_up_gradient.narrow(1, mlp, mlp));
  BackwardStack(LinearStackKind::kGateUp, dropout, tape, buffers, sums);
  AddRmsNormBackward(tape.residual, mlp_norm_, tape.mlp_rms,
                     buffers.read_gradient[At(LinearStackKind::kGateUp)], gradient);

  // Attention.
  wrote_gradient(LinearStackKind::kOutput).narrow(1, 0, width).copy_(gradient);
  BackwardStack(LinearStackKind::kOutput, dropout, tape, buffers, sums);
  const ProjectionLayout query_layout = QueryLayout(tape), key_layout = KeyLayout(tape);
  at::Tensor mixed_gradient =
      buffers.read_gradient[At(LinearStackKind::kOutput)]
          .view({tape.batch, tape.length, shape_.num_heads, config_.head_dim})
          .transpose(1, 2);
  if (query_layout.padded_dim > config_.head_dim) {
    mixed_gradient =
        at::constant_pad_nd(mixed_gradient, {0, query_layout.padded_dim - config_.head_dim});
  }
  const auto heads = AttendBackward(mixed_gradient, attention_scale, tape);
  at::Tensor& projection_gradients = wrote_gradient(LinearStackKind::kQueryKeyValue);
  const Stack& projections = stacks_[At(LinearStackKind::kQueryKeyValue)];
  const auto columns = [&](const at::Tensor& all, size_t member) {
    return all.narrow(1, projections.members[member].first, projections.members[member].out);
  };
  const auto through_norm = [&](size_t member, const at::Tensor& norm, const at::Tensor& rms) {
    if (!config_.query_key_norm) return;
    at::Tensor into = columns(projection_gradients, member);
    const at::Tensor x = columns(tape.wrote[At(LinearStackKind::kQueryKeyValue)], member)
                             .reshape({-1, config_.head_dim});
    at::Tensor sum = at::zeros(x.sizes(), x.options());
    AddRmsNormBackward(x, norm, rms, into.reshape({-1, config_.head_dim}), sum);
    into.copy_(sum.view({rows, -1}));
  };
  SplitHeadsBackward(heads[0], query_layout, &rotary, columns(projection_gradients, 0));
  SplitHeadsBackward(heads[1], key_layout, &rotary, columns(projection_gradients, 1));
  SplitHeadsBackward(heads[2], key_layout, nullptr, columns(projection_gradients, 2));
  through_norm(0, query_norm_, tape.query_rms);
  through_norm(1, key_norm_, tape.key_rms);
  BackwardStack(LinearStackKind::kQueryKeyValue, dropout, tape, buffers, sums);
  AddRmsNormBackward(tape.input, attention_norm_, tape.attention_rms,
                     buffers.read_gradient[At(LinearStackKind::kQueryKeyValue)], gradient);
  return gradient.view(output_gradient.sizes());
}

}  // namespace qpruner::engine
