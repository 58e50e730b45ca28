#include "worker/engine/tasks/spec_mapping.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/spec_defaults.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig TwoBlocks() {
  ModelConfig config;
  config.blocks.resize(2);
  return config;
}

// One entry for each group of two blocks.
google::protobuf::RepeatedPtrField<v1::GroupPrecision> Precisions() {
  google::protobuf::RepeatedPtrField<v1::GroupPrecision> precisions;
  for (const LinearGroup& group : MakeSearchGroups(2, SearchGranularity::kFusedGroup)) {
    auto& precision = *precisions.Add();
    precision.set_group(group.name);
    precision.set_bits(group.block == 0 ? 4 : 8);
  }
  return precisions;
}

TEST(SpecMapping, AnEmptySpecMeansTheDocumentedDefaults) {
  v1::CompressionSpec spec;
  FillDefaults(spec);
  const TextLimits limits = TextLimitsOf(spec);
  EXPECT_EQ(limits.calibration_samples, 32);
  EXPECT_EQ(limits.calibration_length, 128);
  EXPECT_EQ(limits.evaluation_length, 512);
  EXPECT_EQ(limits.selection_tokens, 8192);
  EXPECT_EQ(limits.test_tokens, 16384);
  EXPECT_EQ(ImportanceOptionsOf(spec).method, ImportanceMethod::kTaylorMixed);
  EXPECT_EQ(ImportanceOptionsOf(spec).reduction, GroupReduction::kSum);
  const PruningOptions pruning = PruningOptionsOf(spec.pruning());
  EXPECT_EQ(pruning.ratio, 0);
  EXPECT_EQ(pruning.layout, PruningLayout::kUniform);
  EXPECT_EQ(pruning.alignment, 32);
  EXPECT_EQ(pruning.first_block, 1);
  EXPECT_FALSE(pruning.last_block.has_value());
  EXPECT_EQ(GranularityOf(spec.search()), SearchGranularity::kFusedGroup);
  const auto formats = CandidateFormats(spec);
  ASSERT_TRUE(formats.ok());
  ASSERT_EQ(formats->size(), 3u);
  EXPECT_EQ((*formats)[0].kind, FormatKind::kNormalFloat);
  EXPECT_EQ((*formats)[1].kind, FormatKind::kInteger8Row);
  EXPECT_EQ((*formats)[2].kind, FormatKind::kBfloat16);
  const TrainerOptions trainer = TrainerOptionsOf(spec.fine_tune());
  EXPECT_EQ(trainer.steps(), 200);
  EXPECT_EQ(trainer.batch_size, 8);
  EXPECT_EQ(trainer.sequence_length, 256);
  EXPECT_EQ(trainer.learning_rate.peak, 1e-3);
  EXPECT_EQ(trainer.learning_rate.warmup_steps, 20);
  EXPECT_EQ(trainer.seed, 42u);
  const LoraOptions lora = LoraOptionsOf(spec.fine_tune());
  EXPECT_EQ(lora.rank, 8);
  EXPECT_EQ(lora.alpha, 16);
  EXPECT_EQ(lora.targets.size(), 7u);
  EXPECT_EQ(AdapterInitOf(spec.fine_tune()), AdapterInit::kLoftq);
  EXPECT_EQ(LoftqIterationsOf(spec.fine_tune()), 1);
  EXPECT_EQ(ExportDTypeOf(spec.export_()), at::kBFloat16);
}

TEST(SpecMapping, AnExplicitZeroIsNotTheDefault) {
  v1::FineTune fine_tune;
  fine_tune.set_steps(0);
  fine_tune.set_warmup_steps(0);
  EXPECT_EQ(TrainerOptionsOf(fine_tune).steps(), 0);
  EXPECT_EQ(TrainerOptionsOf(fine_tune).learning_rate.warmup_steps, 0);
}

TEST(SpecMapping, FineTuningTakesWhatWasAsked) {
  v1::FineTune fine_tune;
  fine_tune.set_micro_batch_size(3);
  fine_tune.set_schedule(v1::FineTune::LINEAR);
  fine_tune.set_weight_decay(0.01);
  fine_tune.set_dropout(0.05);
  fine_tune.set_evaluate_every(7);
  fine_tune.set_max_gradient_norm(0.5);
  const TrainerOptions trainer = TrainerOptionsOf(fine_tune);
  EXPECT_EQ(trainer.micro_batch_size, 3);
  EXPECT_EQ(trainer.learning_rate.schedule, LearningRateSchedule::kLinear);
  EXPECT_EQ(trainer.adam_w.weight_decay, 0.01);
  EXPECT_EQ(trainer.dropout, 0.05);
  EXPECT_EQ(trainer.evaluate_every, 7);
  EXPECT_EQ(trainer.max_gradient_norm, 0.5);
  EXPECT_FALSE(DistillationOptionsOf(fine_tune).has_value());
  fine_tune.mutable_distillation()->set_weight(0.25);
  fine_tune.mutable_distillation()->set_temperature(2);
  EXPECT_EQ(DistillationOptionsOf(fine_tune)->weight, 0.25);
  EXPECT_EQ(DistillationOptionsOf(fine_tune)->temperature, 2);
  fine_tune.add_target_modules(v1::FineTune::DOWN_PROJ);
  fine_tune.add_target_modules(v1::FineTune::V_PROJ);
  EXPECT_EQ(LoraOptionsOf(fine_tune).targets,
            (std::vector<LinearKind>{LinearKind::kValue, LinearKind::kDown}));
  EXPECT_EQ(TrainingDTypeOf(fine_tune, at::kHalf), at::kHalf);
  fine_tune.set_compute_type(v1::FineTune::BFLOAT16);
  EXPECT_EQ(TrainingDTypeOf(fine_tune, at::kFloat), at::kBFloat16);
}

TEST(SpecMapping, LengthsAreLoweredToTheModelsPositionsOnceAndToldOfIfTheyAreUsed) {
  v1::CompressionSpec spec;
  FillDefaults(spec);
  EXPECT_TRUE(LowerToPositions(512, spec).empty());
  EXPECT_EQ(spec.fine_tune().sequence_length(), 256);
  v1::CompressionSpec untrained = spec;
  untrained.mutable_fine_tune()->set_steps(0);
  EXPECT_THAT(LowerToPositions(100, spec),
              ElementsAre("calibration.sequence_length was lowered from 128 to 100, the model's "
                          "positions",
                          HasSubstr("evaluation.sequence_length was lowered from 512"),
                          HasSubstr("fine_tune.sequence_length was lowered from 256")));
  EXPECT_EQ(spec.calibration().sequence_length(), 100);
  EXPECT_EQ(spec.evaluation().sequence_length(), 100);
  EXPECT_EQ(spec.fine_tune().sequence_length(), 100);
  EXPECT_TRUE(LowerToPositions(100, spec).empty());
  EXPECT_EQ(LowerToPositions(100, untrained).size(), 2u);
  EXPECT_EQ(spec.evaluation().stride(), 100);

  v1::CompressionSpec rolling;
  rolling.mutable_evaluation()->set_stride(50);
  FillDefaults(rolling);
  LowerToPositions(100, rolling);
  EXPECT_EQ(rolling.evaluation().stride(), 50);
  EXPECT_THAT(LowerToPositions(40, rolling),
              testing::Contains("evaluation.stride was lowered from 50 to 20, half of the model's "
                                "positions"));
  EXPECT_EQ(rolling.evaluation().stride(), 20);
}

TEST(SpecMapping, CandidatesAreSortedAndUnique) {
  v1::CompressionSpec spec;
  for (const int bits : {16, 4, 16}) spec.mutable_search()->add_candidate_bits(bits);
  spec.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
  spec.mutable_quantization()->set_group_size(128);
  const auto formats = CandidateFormats(spec);
  ASSERT_TRUE(formats.ok());
  ASSERT_EQ(formats->size(), 2u);
  EXPECT_EQ((*formats)[0], Format::IntegerGroup(4, 128));
  EXPECT_EQ((*formats)[1].kind, FormatKind::kBfloat16);
  spec.mutable_search()->add_candidate_bits(9);
  EXPECT_THAT(std::string(CandidateFormats(spec).status().message()), HasSubstr("not 9"));
}

TEST(SpecMapping, TheFormatBehindEachWidth) {
  v1::CompressionSpec spec;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8, 16}) spec.mutable_search()->add_candidate_bits(bits);
  FillDefaults(spec);
  const auto names = [&] {
    std::vector<std::string> names;
    const auto formats = CandidateFormats(spec);
    for (const Format& format : *formats) names.push_back(FormatName(format));
    return names;
  };
  EXPECT_THAT(names(), ElementsAre("nf2", "nf3", "nf4", "int5-group64", "int6-group64",
                                   "int7-group64", "int8-row", "bfloat16"));
  v1::Quantization& quantization = *spec.mutable_quantization();
  quantization.set_low_bit(v1::Quantization::INTEGER_GROUP);
  quantization.set_four_bit(v1::Quantization::INT4_GROUP);
  quantization.set_eight_bit(v1::Quantization::INT8_GROUP);
  quantization.set_group_size(32);
  quantization.set_symmetric(true);
  EXPECT_THAT(names(), ElementsAre("int2-sym-group32", "int3-sym-group32", "int4-sym-group32",
                                   "int5-sym-group32", "int6-sym-group32", "int7-sym-group32",
                                   "int8-sym-group32", "bfloat16"));
  quantization.set_four_bit(v1::Quantization::FP4);
  quantization.set_double_quantization(true);
  quantization.set_eight_bit(v1::Quantization::NF8);
  EXPECT_EQ(names()[2], "fp4-dq");
  EXPECT_EQ(names()[6], "nf8");
  quantization.set_four_bit(v1::Quantization::NF4);
  EXPECT_EQ(names()[2], "nf4-dq");
}

TEST(SpecMapping, AnAssignmentNamesEveryLinear) {
  const auto assignment = AssignmentOf({}, Precisions(), TwoBlocks());
  ASSERT_TRUE(assignment.ok()) << assignment.status();
  EXPECT_EQ(assignment->size(), 2u * kLinearKindCount);
  EXPECT_EQ(assignment->at("model.layers.0.mlp.up_proj").kind, FormatKind::kNormalFloat);
  EXPECT_EQ(assignment->at("model.layers.1.self_attn.k_proj").kind, FormatKind::kInteger8Row);
}

TEST(SpecMapping, AnAssignmentThatDoesNotFitIsRefusedByGroup) {
  const auto message = [](const auto& precisions) {
    const auto assignment = AssignmentOf({}, precisions, TwoBlocks());
    EXPECT_EQ(assignment.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(assignment.status().message());
  };
  auto missing = Precisions();
  const std::string last = missing.rbegin()->group();
  missing.RemoveLast();
  EXPECT_EQ(message(missing), "precisions: group " + last + " is missing");
  auto twice = Precisions();
  *twice.Add() = twice.Get(0);
  EXPECT_THAT(message(twice), HasSubstr("is named twice"));
  auto unknown = Precisions();
  unknown.Add()->set_group("model.layers.9.attn_qkv");
  EXPECT_THAT(message(unknown), HasSubstr("no group model.layers.9.attn_qkv"));
  auto width = Precisions();
  width.Mutable(0)->set_bits(9);
  EXPECT_THAT(message(width), HasSubstr("not 9"));
}

TEST(SpecMapping, EvaluationComputesInWhatTheDeviceDoesUnlessAsked) {
  v1::Evaluation evaluation;
  EXPECT_EQ(EvaluationDTypeOf(evaluation, at::kHalf), at::kHalf);
  evaluation.set_compute_type(v1::Evaluation::BFLOAT16);
  EXPECT_EQ(EvaluationDTypeOf(evaluation, at::kFloat), at::kBFloat16);
  evaluation.set_compute_type(v1::Evaluation::FLOAT32);
  EXPECT_EQ(EvaluationDTypeOf(evaluation, at::kBFloat16), at::kFloat);
}

}  // namespace
}  // namespace qpruner::engine
