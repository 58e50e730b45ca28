#include "proto/spec_defaults.h"

#include <algorithm>

namespace qpruner {
namespace {

void FillDataset(v1::TextDataset& dataset) {
  if (dataset.uri().empty()) dataset.set_uri("builtin://tinystories");
  if (!dataset.has_document_separator()) dataset.set_document_separator("<|endoftext|>");
}

}  // namespace

void FillDefaults(v1::CompressionSpec& spec) {
#define QPRUNER_DEFAULT(message, field, value) \
  if (!(message).has_##field()) (message).set_##field(value)
#define QPRUNER_ENUM_DEFAULT(message, field, value) \
  if ((message).field() == 0) (message).set_##field(value)

  v1::Calibration& calibration = *spec.mutable_calibration();
  FillDataset(*calibration.mutable_dataset());
  QPRUNER_DEFAULT(calibration, sample_count, 32);
  QPRUNER_DEFAULT(calibration, sequence_length, 128);
  QPRUNER_DEFAULT(calibration, seed, 42);

  v1::Pruning& pruning = *spec.mutable_pruning();
  QPRUNER_ENUM_DEFAULT(pruning, importance, v1::Pruning::TAYLOR_MIXED);
  QPRUNER_DEFAULT(pruning, ratio, 0.0);
  QPRUNER_ENUM_DEFAULT(pruning, layout, v1::Pruning::UNIFORM);
  QPRUNER_ENUM_DEFAULT(pruning, reduction, v1::Pruning::SUM);
  QPRUNER_DEFAULT(pruning, alignment, 32);
  QPRUNER_DEFAULT(pruning, steps, 1);
  QPRUNER_ENUM_DEFAULT(pruning, selection, v1::Pruning::LOCAL);
  QPRUNER_DEFAULT(pruning, llm_pruner_head_fold, false);
  if (pruning.layout() == v1::Pruning::PER_LAYER) QPRUNER_DEFAULT(pruning, first_block, 1);

  v1::Quantization& quantization = *spec.mutable_quantization();
  QPRUNER_ENUM_DEFAULT(quantization, four_bit, v1::Quantization::NF4);
  QPRUNER_ENUM_DEFAULT(quantization, eight_bit, v1::Quantization::INT8_ROW);
  QPRUNER_ENUM_DEFAULT(quantization, low_bit, v1::Quantization::NORMAL_FLOAT);
  QPRUNER_DEFAULT(quantization, group_size, 64);
  QPRUNER_DEFAULT(quantization, symmetric, false);
  QPRUNER_DEFAULT(quantization, double_quantization, false);
  QPRUNER_DEFAULT(quantization, activation_scaling, false);
  QPRUNER_ENUM_DEFAULT(quantization, method, v1::Quantization::ROUND_TO_NEAREST);
  if (quantization.method() == v1::Quantization::GPTQ) {
    QPRUNER_DEFAULT(quantization, damping, 0.01);
    QPRUNER_DEFAULT(quantization, activation_order, true);
  }

  v1::Search& search = *spec.mutable_search();
  if (search.candidate_bits().empty()) {
    for (const int bits : {4, 8, 16}) search.add_candidate_bits(bits);
  }
  QPRUNER_ENUM_DEFAULT(search, granularity, v1::Search::FUSED_GROUP);
  QPRUNER_ENUM_DEFAULT(search, algorithm, v1::Search::BAYESIAN);
  QPRUNER_DEFAULT(search, max_trials, 30);
  QPRUNER_DEFAULT(search, parallelism, 2);
  QPRUNER_ENUM_DEFAULT(search, quality_metric, v1::Search::KL_DIVERGENCE);
  QPRUNER_DEFAULT(search, seed, 42);

  v1::FineTune& tune = *spec.mutable_fine_tune();
  QPRUNER_DEFAULT(tune, steps, 200);
  QPRUNER_ENUM_DEFAULT(tune, init, v1::FineTune::LOFTQ);
  QPRUNER_DEFAULT(tune, loftq_iterations, 1);
  QPRUNER_DEFAULT(tune, rank, 8);
  QPRUNER_DEFAULT(tune, alpha, 16.0);
  QPRUNER_DEFAULT(tune, learning_rate, 0.001);
  // A run shorter than the usual warm-up is all warm-up rather than an error.
  QPRUNER_DEFAULT(tune, warmup_steps, std::clamp(tune.steps(), 0, 20));
  QPRUNER_DEFAULT(tune, batch_size, 8);
  QPRUNER_DEFAULT(tune, sequence_length, 256);
  FillDataset(*tune.mutable_dataset());
  QPRUNER_DEFAULT(tune, seed, 42);
  QPRUNER_DEFAULT(tune, dropout, 0.0);
  if (tune.target_modules().empty()) {
    for (int module = v1::FineTune::Q_PROJ; module <= v1::FineTune::DOWN_PROJ; ++module) {
      tune.add_target_modules(static_cast<v1::FineTune::Projection>(module));
    }
  }
  QPRUNER_DEFAULT(tune, micro_batch_size, std::min(8, tune.batch_size()));
  QPRUNER_ENUM_DEFAULT(tune, schedule, v1::FineTune::COSINE);
  QPRUNER_DEFAULT(tune, weight_decay, 0.0);
  QPRUNER_DEFAULT(tune, evaluate_every, 25);
  QPRUNER_DEFAULT(tune, checkpoint_every, 50);
  QPRUNER_DEFAULT(tune, max_gradient_norm, 1.0);
  QPRUNER_ENUM_DEFAULT(tune, data_format, v1::FineTune::TEXT);
  if (tune.data_format() == v1::FineTune::TEXT) QPRUNER_DEFAULT(tune, packing, true);
  if (tune.has_distillation()) {
    QPRUNER_DEFAULT(*tune.mutable_distillation(), weight, 0.5);
    QPRUNER_DEFAULT(*tune.mutable_distillation(), temperature, 1.0);
  }

  v1::Evaluation& evaluation = *spec.mutable_evaluation();
  FillDataset(*evaluation.mutable_dataset());
  QPRUNER_DEFAULT(evaluation, sequence_length, 512);
  QPRUNER_DEFAULT(evaluation, stride, evaluation.sequence_length());
  QPRUNER_DEFAULT(evaluation, max_selection_tokens, 8192);
  QPRUNER_DEFAULT(evaluation, max_test_tokens, 16384);
  for (v1::EvaluationTask& task : *evaluation.mutable_tasks()) QPRUNER_DEFAULT(task, limit, 0);

  v1::Export& output = *spec.mutable_export_();
  QPRUNER_ENUM_DEFAULT(output, dtype, v1::Export::BFLOAT16);
  if (output.formats().empty()) output.add_formats(v1::Export::HUGGING_FACE);
  QPRUNER_ENUM_DEFAULT(output, adapter, v1::Export::MERGED);
  if (std::count(output.formats().begin(), output.formats().end(), v1::Export::GGUF) != 0) {
    QPRUNER_ENUM_DEFAULT(output, gguf_four_bit, v1::Export::Q4_K);
    QPRUNER_ENUM_DEFAULT(output, gguf_eight_bit, v1::Export::Q8_0);
    QPRUNER_ENUM_DEFAULT(output, gguf_sixteen_bit, v1::Export::BF16);
    QPRUNER_ENUM_DEFAULT(output, gguf_embedding, v1::Export::BF16);
  }
  QPRUNER_DEFAULT(*spec.mutable_limits(), max_attempts, 3);
#undef QPRUNER_DEFAULT
#undef QPRUNER_ENUM_DEFAULT
}

}  // namespace qpruner
