#include "worker/engine/finetune/lora_gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

#include "worker/engine/finetune/block_kernels.h"
#include "worker/engine/model/host_store.h"

namespace qpruner::engine {

std::vector<at::Tensor> TrainedParameters(const LoraAdapter& adapter) {
  std::vector<at::Tensor> parameters;
  for (size_t block = 0; block < adapter.a.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!adapter.a[block][kind].defined()) continue;
      parameters.push_back(adapter.a[block][kind]);
      parameters.push_back(adapter.b[block][kind]);
    }
  }
  return parameters;
}

// One evaluation of the loss over batches.
struct LoraGradientComputer::Pass {
  const LoraAdapter& adapter;
  const std::vector<TrainingBatch>& batches;
  const TrainingObjective& objective;
  const DropoutOptions& dropout;
  std::vector<BlockGradients>* sums;  // [block]; null: only the loss.

  // Of one block over one batch; `place` is filled.
  const AdapterDropout* Dropout(int64_t block, const TrainingBatch& batch,
                                AdapterDropout& place) const {
    if (dropout.probability == 0) return nullptr;
    place = {.probability = dropout.probability,
             .seed = dropout.seed,
             .step = dropout.step,
             .first_sequence = batch.first_sequence,
             .length = batch.ids.size(1),
             .block = block};
    return &place;
  }
};

LoraGradientComputer::LoraGradientComputer(WeightSource& base, const TrainingPlan& plan,
                                           at::ScalarType dtype)
    : base_(base), plan_(plan), dtype_(dtype) {
  at::NoGradGuard no_grad;
  embedding_ = base.Embedding().to(dtype);
  head_ = base.config().tie_word_embeddings ? embedding_ : base.Head().to(dtype);
  norm_ = base.FinalNorm().to(dtype);
  const int64_t block_count = base.config().num_blocks();
  if (plan.kind == TrainingPlan::Kind::kResident) {
    blocks_.reserve(static_cast<size_t>(block_count));
    for (int64_t block = 0; block < block_count; ++block) {
      blocks_.emplace_back(base.config(), base.config().blocks[static_cast<size_t>(block)],
                           base.Block(block), dtype);
    }
    tapes_.resize(static_cast<size_t>(block_count));
  } else {
    tapes_.resize(1);
  }
}

AdaptedBlock& LoraGradientComputer::Enter(const LoraAdapter& adapter, int64_t block) {
  const auto index = static_cast<size_t>(block);
  AdaptedBlock* entered = nullptr;
  if (plan_.kind == TrainingPlan::Kind::kResident) {
    entered = &blocks_[index];
  } else {
    streamed_.reset();  // Its memory is free before the next one asks for some.
    streamed_.emplace(base_.config(), base_.config().blocks[index], base_.Block(block), dtype_);
    entered = &*streamed_;
  }
  entered->SetAdapter(adapter, block);
  return *entered;
}

at::Tensor LoraGradientComputer::Embedded(const TrainingBatch& batch) {
  const int64_t length = batch.ids.size(1);
  if (length > rotary_length_) {
    rotary_ = MakeRotaryTables(base_.config(), length, base_.device(), dtype_);
    rotary_length_ = length;
  }
  return at::embedding(embedding_, batch.ids.to(base_.device()));
}

LossSum LoraGradientComputer::AtOutput(const at::Tensor& output, const TrainingBatch& batch,
                                       const TrainingObjective& objective, at::Tensor* gradient) {
  const at::Tensor rows = output.view({-1, output.size(2)});
  at::Tensor normed, inverse_rms;
  RmsNormForward(rows, norm_, base_.config().rms_norm_eps, normed, inverse_rms);
  at::Tensor d_normed;
  const LossSum loss = objective.Evaluate(batch, normed.view(output.sizes()), head_,
                                          gradient == nullptr ? nullptr : &d_normed);
  if (gradient != nullptr) {
    at::Tensor sum = at::zeros(rows.sizes(), rows.options());
    AddRmsNormBackward(rows, norm_, inverse_rms, d_normed.view(rows.sizes()), sum);
    *gradient = sum.view(output.sizes());
  }
  return loss;
}

LossSum LoraGradientComputer::RunResident(Pass& pass) {
  const auto block_count = static_cast<int64_t>(blocks_.size());
  for (int64_t block = 0; block < block_count; ++block) Enter(pass.adapter, block);
  LossSum loss;
  AdapterDropout place;
  for (const TrainingBatch& batch : pass.batches) {
    at::Tensor hidden = Embedded(batch);
    for (int64_t block = 0; block < block_count; ++block) {
      BlockTape& tape = pass.sums == nullptr ? loss_tape_ : tapes_[static_cast<size_t>(block)];
      hidden = blocks_[static_cast<size_t>(block)].Forward(hidden, rotary_,
                                                           pass.Dropout(block, batch, place), tape);
    }
    at::Tensor gradient;
    loss += AtOutput(hidden, batch, pass.objective, pass.sums == nullptr ? nullptr : &gradient);
    if (pass.sums == nullptr) continue;
    for (int64_t block = block_count - 1; block >= 0; --block) {
      const auto index = static_cast<size_t>(block);
      gradient = blocks_[index].Backward(gradient, rotary_, pass.Dropout(block, batch, place),
                                         tapes_[index], buffers_, (*pass.sums)[index]);
    }
  }
  return loss;
}

LossSum LoraGradientComputer::RunStreamed(Pass& pass) {
  const int64_t block_count = base_.config().num_blocks();
  const at::Device device = base_.device();
  BlockTape& tape = pass.sums == nullptr ? loss_tape_ : tapes_.front();
  AdapterDropout place;
  // hidden[batch] of the block in work; inputs[block][batch] for the way back.
  HostStore waiting = HostStore::Beside(device);
  std::vector<at::Tensor> hidden;
  std::vector<std::vector<at::Tensor>> inputs(static_cast<size_t>(block_count));
  for (const TrainingBatch& batch : pass.batches) hidden.push_back(waiting.Keep(Embedded(batch)));
  for (int64_t block = 0; block < block_count; ++block) {
    if (pass.sums != nullptr) inputs[static_cast<size_t>(block)] = hidden;
    const AdaptedBlock& entered = Enter(pass.adapter, block);
    for (size_t i = 0; i < pass.batches.size(); ++i) {
      hidden[i] = waiting.Keep(entered.Forward(hidden[i].to(device), rotary_,
                                               pass.Dropout(block, pass.batches[i], place), tape));
    }
  }
  LossSum loss;
  std::vector<at::Tensor> gradients(pass.batches.size());
  for (size_t i = 0; i < pass.batches.size(); ++i) {
    at::Tensor gradient;
    loss += AtOutput(hidden[i].to(device), pass.batches[i], pass.objective,
                     pass.sums == nullptr ? nullptr : &gradient);
    hidden[i] = at::Tensor();
    if (pass.sums != nullptr) gradients[i] = waiting.Keep(gradient);
  }
  if (pass.sums == nullptr) return loss;
  for (int64_t block = block_count - 1; block >= 0; --block) {
    const auto index = static_cast<size_t>(block);
    const AdaptedBlock& entered = Enter(pass.adapter, block);
    for (size_t i = 0; i < pass.batches.size(); ++i) {
      const AdapterDropout* dropout = pass.Dropout(block, pass.batches[i], place);
      entered.Forward(inputs[index][i].to(device), rotary_, dropout, tape);
      gradients[i] = waiting.Keep(entered.Backward(gradients[i].to(device), rotary_, dropout, tape,
                                                   buffers_, (*pass.sums)[index]));
      inputs[index][i] = at::Tensor();
    }
  }
  return loss;
}

LoraGradients LoraGradientComputer::Gradients(const LoraAdapter& adapter,
                                              const std::vector<TrainingBatch>& batches,
                                              const TrainingObjective& objective,
                                              const DropoutOptions& dropout) {
  at::NoGradGuard no_grad;
  std::vector<BlockGradients> sums(adapter.a.size());
  for (size_t block = 0; block < sums.size(); ++block) {
    for (LinearKind kind : kLinearKinds) {
      if (!adapter.a[block][kind].defined()) continue;
      sums[block].a[kind] = at::zeros_like(adapter.a[block][kind]);
      sums[block].b[kind] = at::zeros_like(adapter.b[block][kind]);
    }
  }
  Pass pass{adapter, batches, objective, dropout, &sums};
  const LossSum loss =
      plan_.kind == TrainingPlan::Kind::kResident ? RunResident(pass) : RunStreamed(pass);
  LoraGradients result;
  result.loss = loss.mean();
  for (BlockGradients& of_block : sums) {
    for (LinearKind kind : kLinearKinds) {
      if (!of_block.a[kind].defined()) continue;
      for (at::Tensor* sum : {&of_block.a[kind], &of_block.b[kind]}) {
        result.gradients.push_back(
            sum->div_(static_cast<double>(std::max<int64_t>(1, loss.tokens))));
      }
    }
  }
  return result;
}

LossSum LoraGradientComputer::Loss(const LoraAdapter& adapter,
                                   const std::vector<TrainingBatch>& batches,
                                   const TrainingObjective& objective) {
  at::NoGradGuard no_grad;
  const DropoutOptions none;
  Pass pass{adapter, batches, objective, none, nullptr};
  return plan_.kind == TrainingPlan::Kind::kResident ? RunResident(pass) : RunStreamed(pass);
}

}  // namespace qpruner::engine
