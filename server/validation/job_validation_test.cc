#include "server/validation/job_validation.h"

#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"

namespace qpruner::server {
namespace {

using Change = std::function<void(v1::CreateJobRequest&, v1::CompressionSpec&)>;

v1::CreateJobRequest Smallest() {
  v1::CreateJobRequest request;
  v1::CompressionSpec& spec = *request.mutable_job()->mutable_spec();
  spec.mutable_model()->set_uri("builtin://stories260k");
  spec.mutable_search()->set_max_average_bits(6);
  return request;
}

v1::EvaluationTask& AddTask(v1::CompressionSpec& spec, const std::string& name) {
  v1::EvaluationTask& task = *spec.mutable_evaluation()->add_tasks();
  task.set_name(name);
  task.set_uri("file:///tasks/piqa.jsonl");
  return task;
}

TEST(JobValidation, AModelAndABudgetAreEnoughAndDefaultsAreFilledIn) {
  const auto job = ValidateCreateJob(Smallest(), {});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->project, "default");
  const v1::CompressionSpec& spec = job->job.spec();
  EXPECT_EQ(spec.calibration().dataset().uri(), "builtin://tinystories");
  EXPECT_EQ(spec.calibration().dataset().document_separator(), "<|endoftext|>");
  EXPECT_EQ(spec.calibration().sample_count(), 32);
  EXPECT_EQ(spec.pruning().importance(), v1::Pruning::TAYLOR_MIXED);
  EXPECT_EQ(spec.pruning().alignment(), 32);
  EXPECT_EQ(spec.quantization().four_bit(), v1::Quantization::NF4);
  EXPECT_THAT(spec.search().candidate_bits(), testing::ElementsAre(4, 8, 16));
  EXPECT_EQ(spec.search().algorithm(), v1::Search::BAYESIAN);
  EXPECT_EQ(spec.search().max_trials(), 30);
  EXPECT_EQ(spec.search().parallelism(), 2);
  EXPECT_EQ(spec.fine_tune().steps(), 200);
  EXPECT_EQ(spec.fine_tune().warmup_steps(), 20);
  EXPECT_EQ(spec.fine_tune().target_modules_size(), 7);
  EXPECT_EQ(spec.fine_tune().micro_batch_size(), 8);
  EXPECT_EQ(spec.evaluation().max_test_tokens(), 16384);
  EXPECT_EQ(spec.export_().dtype(), v1::Export::BFLOAT16);
  EXPECT_EQ(spec.limits().max_attempts(), 3);
  // What was written back can be sent again.
  v1::CreateJobRequest again;
  *again.mutable_job() = job->job;
  ASSERT_TRUE(ValidateCreateJob(again, {}).ok());
  EXPECT_EQ(ValidateCreateJob(again, {})->job.spec().SerializeAsString(), spec.SerializeAsString());
}

TEST(JobValidation, AllViolationsComeAtOnce) {
  v1::CreateJobRequest request = Smallest();
  request.set_job_id("Bad");
  request.mutable_job()->mutable_spec()->mutable_pruning()->set_ratio(1.5);
  request.mutable_job()->mutable_spec()->mutable_search()->clear_budget();
  const absl::Status status = ValidateCreateJob(request, {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(ErrorReason(status), "INVALID_FIELDS");
  std::vector<std::string> fields;
  for (const FieldViolation& violation : FieldViolations(status)) fields.push_back(violation.field);
  EXPECT_THAT(fields,
              testing::UnorderedElementsAre("job_id", "job.spec.pruning.ratio", "job.spec.search"));
}

TEST(JobValidation, ModelsMayComeFromElsewhere) {
  for (const char* uri : {"hf://org/name", "hf://org/name@v1.0", "s3://bucket/models/llama",
                          "artifact://projects/default/jobs/j/artifacts/model"}) {
    v1::CreateJobRequest request = Smallest();
    request.mutable_job()->mutable_spec()->mutable_model()->set_uri(uri);
    const auto job = ValidateCreateJob(request, {.model_roots = {"/models"}});
    EXPECT_TRUE(job.ok()) << job.status();
  }
}

struct Case {
  const char* field;
  const char* text;  // Part of the description: the rule or the value.
  Change change;
};

TEST(JobValidation, EveryRuleNamesItsFieldAndTheValue) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Case> cases = {
      {"parent", "projects/{project}", [](auto& r, auto&) { r.set_parent("x"); }},
      {"job_id", "[a-z]", [](auto& r, auto&) { r.set_job_id("-a"); }},
      {"request_id", "64", [](auto& r, auto&) { r.set_request_id(std::string(65, 'a')); }},
      {"job.display_name", "256",
       [](auto& r, auto&) { r.mutable_job()->set_display_name(std::string(257, 'a')); }},
      {"job.labels", "[a-z0-9_-]",
       [](auto& r, auto&) { (*r.mutable_job()->mutable_labels())["A"]; }},
      {"job.labels[a]", "63",
       [](auto& r, auto&) { (*r.mutable_job()->mutable_labels())["a"] = std::string(64, 'v'); }},
      {"job.labels[a]", "zero byte",
       [](auto& r, auto&) {
         (*r.mutable_job()->mutable_labels())["a"] = std::string("v\0", 2);
       }},
      {"request_id", "zero byte", [](auto& r, auto&) { r.set_request_id(std::string("\0", 1)); }},
      {"job.labels", "32",
       [](auto& r, auto&) {
         for (int i = 0; i < 33; ++i) (*r.mutable_job()->mutable_labels())[std::to_string(i)];
       }},
      {"job.priority", "101", [](auto& r, auto&) { r.mutable_job()->set_priority(101); }},
      {"job.spec.model.uri", "required", [](auto&, auto& s) { s.clear_model(); }},
      {"job.spec.model.uri", "must be file",
       [](auto&, auto& s) { s.mutable_model()->set_uri("/m"); }},
      {"job.spec.model.uri", "absolute",
       [](auto&, auto& s) { s.mutable_model()->set_uri("file://m"); }},
      {"job.spec.model.uri", "..",
       [](auto&, auto& s) { s.mutable_model()->set_uri("file:///a/../b"); }},
      {"job.spec.model.uri", "shipped",
       [](auto&, auto& s) { s.mutable_model()->set_uri("builtin://gpt"); }},
      {"job.spec.model.uri", "hf://organization/name",
       [](auto&, auto& s) { s.mutable_model()->set_uri("http://huggingface.co/a/b"); }},
      {"job.spec.model.uri", "must be hf://organization/name@revision",
       [](auto&, auto& s) { s.mutable_model()->set_uri("hf://../b"); }},
      {"job.spec.model.uri", "must be s3://bucket/prefix",
       [](auto&, auto& s) { s.mutable_model()->set_uri("s3://bucket/a/../b"); }},
      {"job.spec.model.uri", "must be artifact://projects",
       [](auto&, auto& s) { s.mutable_model()->set_uri("artifact://jobs/j/artifacts/model"); }},
      {"job.spec.model.uri", "own project, default",
       [](auto&, auto& s) {
         s.mutable_model()->set_uri("artifact://projects/other/jobs/j/artifacts/model");
       }},
      {"job.spec.calibration.dataset.uri", "must be file",
       [](auto&, auto& s) { s.mutable_calibration()->mutable_dataset()->set_uri("hf://a/b"); }},
      {"job.spec.calibration.dataset.uri", "must be file",
       [](auto&, auto& s) { s.mutable_calibration()->mutable_dataset()->set_uri("http://x"); }},
      {"job.spec.calibration.sample_count", "1 to 1024, is 0",
       [](auto&, auto& s) { s.mutable_calibration()->set_sample_count(0); }},
      {"job.spec.calibration.sequence_length", "16 to 4096",
       [](auto&, auto& s) { s.mutable_calibration()->set_sequence_length(15); }},
      {"job.spec.pruning.importance", "99",
       [](auto&, auto& s) {
         s.mutable_pruning()->set_importance(static_cast<v1::Pruning::Importance>(99));
       }},
      {"job.spec.pruning.ratio", "[0, 1), is 1",
       [](auto&, auto& s) { s.mutable_pruning()->set_ratio(1); }},
      {"job.spec.pruning.ratio", "nan",
       [nan](auto&, auto& s) { s.mutable_pruning()->set_ratio(nan); }},
      {"job.spec.pruning.alignment", "1 to 1024",
       [](auto&, auto& s) { s.mutable_pruning()->set_alignment(0); }},
      {"job.spec.pruning.parameter_ratio", "(0, 1), is 1",
       [](auto&, auto& s) { s.mutable_pruning()->set_parameter_ratio(1); }},
      {"job.spec.pruning.ratio", "left out with parameter_ratio",
       [](auto&, auto& s) {
         s.mutable_pruning()->set_parameter_ratio(0.2);
         s.mutable_pruning()->set_ratio(0.2);
       }},
      {"job.spec.pruning.steps", "1 to 64",
       [](auto&, auto& s) { s.mutable_pruning()->set_steps(0); }},
      {"job.spec.pruning.selection", "needs layout PER_LAYER",
       [](auto&, auto& s) { s.mutable_pruning()->set_selection(v1::Pruning::GLOBAL); }},
      {"job.spec.pruning.first_block", "PER_LAYER",
       [](auto&, auto& s) { s.mutable_pruning()->set_first_block(2); }},
      {"job.spec.pruning.last_block", "larger than first_block (3)",
       [](auto&, auto& s) {
         s.mutable_pruning()->set_layout(v1::Pruning::PER_LAYER);
         s.mutable_pruning()->set_first_block(3);
         s.mutable_pruning()->set_last_block(3);
       }},
      {"job.spec.export.formats[0]", "PER_LAYER",
       [](auto&, auto& s) {
         s.mutable_pruning()->set_layout(v1::Pruning::PER_LAYER);
         s.mutable_pruning()->set_ratio(0.2);
         s.mutable_export_()->add_formats(v1::Export::GGUF);
       }},
      {"job.spec.export.formats[1]", "twice",
       [](auto&, auto& s) {
         s.mutable_export_()->add_formats(v1::Export::GGUF);
         s.mutable_export_()->add_formats(v1::Export::GGUF);
       }},
      {"job.spec.export.gguf_four_bit", "Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, is Q8_0",
       [](auto&, auto& s) { s.mutable_export_()->set_gguf_four_bit(v1::Export::Q8_0); }},
      {"job.spec.export.gguf_eight_bit", "Q8_0, Q6_K, is F32",
       [](auto&, auto& s) { s.mutable_export_()->set_gguf_eight_bit(v1::Export::F32); }},
      {"job.spec.export.gguf_sixteen_bit", "BF16, F16, F32, is Q4_K",
       [](auto&, auto& s) { s.mutable_export_()->set_gguf_sixteen_bit(v1::Export::Q4_K); }},
      {"job.spec.export.gguf_embedding", "is 99",
       [](auto&, auto& s) {
         s.mutable_export_()->set_gguf_embedding(static_cast<v1::Export::GgufType>(99));
       }},
      {"job.spec.quantization.group_size", "32, 64, 128, is 48",
       [](auto&, auto& s) { s.mutable_quantization()->set_group_size(48); }},
      {"job.spec.quantization.eight_bit", "99",
       [](auto&, auto& s) {
         s.mutable_quantization()->set_eight_bit(static_cast<v1::Quantization::EightBit>(99));
       }},
      {"job.spec.quantization.symmetric", "integers in groups",
       [](auto&, auto& s) { s.mutable_quantization()->set_symmetric(true); }},
      {"job.spec.quantization.double_quantization", "NF4 or FP4",
       [](auto&, auto& s) {
         s.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
         s.mutable_quantization()->set_double_quantization(true);
       }},
      {"job.spec.quantization.method", "neither 16 nor INT8_ROW",
       [](auto&, auto& s) {
         s.mutable_quantization()->set_method(v1::Quantization::GPTQ);
         s.mutable_search()->add_candidate_bits(8);
         s.mutable_search()->set_max_average_bits(9);
       }},
      {"job.spec.quantization.damping", "(0, 1], is 0",
       [](auto&, auto& s) {
         s.mutable_quantization()->set_method(v1::Quantization::GPTQ);
         s.mutable_quantization()->set_damping(0);
       }},
      {"job.spec.quantization.activation_order", "needs method GPTQ",
       [](auto&, auto& s) { s.mutable_quantization()->set_activation_order(false); }},
      {"job.spec.fine_tune.loftq_iterations", "must be 1 with quantization.method GPTQ",
       [](auto&, auto& s) {
         s.mutable_quantization()->set_method(v1::Quantization::GPTQ);
         s.mutable_fine_tune()->set_loftq_iterations(2);
       }},
      {"job.spec.search.candidate_bits[0]", "2, 3, 4, 5, 6, 7, 8, 16, is 9",
       [](auto&, auto& s) { s.mutable_search()->add_candidate_bits(9); }},
      {"job.spec.search.candidate_bits[1]", "twice",
       [](auto&, auto& s) {
         s.mutable_search()->add_candidate_bits(8);
         s.mutable_search()->add_candidate_bits(8);
         s.mutable_search()->set_max_average_bits(9);
       }},
      {"job.spec.search", "budget", [](auto&, auto& s) { s.mutable_search()->clear_budget(); }},
      {"job.spec.search.max_bytes", "positive",
       [](auto&, auto& s) { s.mutable_search()->set_max_bytes(0); }},
      {"job.spec.search.max_average_bits", "4.5",
       [](auto&, auto& s) { s.mutable_search()->set_max_average_bits(4.4); }},
      {"job.spec.search.max_average_bits", "(0, 16]",
       [nan](auto&, auto& s) { s.mutable_search()->set_max_average_bits(nan); }},
      {"job.spec.search.max_trials", "1 to 1000",
       [](auto&, auto& s) { s.mutable_search()->set_max_trials(1001); }},
      {"job.spec.search.parallelism", "1 to 64",
       [](auto&, auto& s) { s.mutable_search()->set_parallelism(0); }},
      {"job.spec.fine_tune.steps", "0 to 100000",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_steps(-1); }},
      {"job.spec.fine_tune.loftq_iterations", "1 to 10",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_loftq_iterations(11); }},
      {"job.spec.fine_tune.rank", "1 to 256",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_rank(0); }},
      {"job.spec.fine_tune.alpha", "(0, 1024]",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_alpha(0); }},
      {"job.spec.fine_tune.learning_rate", "(0, 1]",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_learning_rate(2); }},
      {"job.spec.fine_tune.warmup_steps", "steps (200)",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_warmup_steps(201); }},
      {"job.spec.fine_tune.batch_size", "1 to 256",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_batch_size(257); }},
      {"job.spec.fine_tune.sequence_length", "16 to 4096",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_sequence_length(8); }},
      {"job.spec.fine_tune.dropout", "[0, 1), is 1",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_dropout(1); }},
      {"job.spec.fine_tune.target_modules[0]", "0",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->add_target_modules(v1::FineTune::PROJECTION_UNSPECIFIED);
       }},
      {"job.spec.fine_tune.target_modules[1]", "twice",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->add_target_modules(v1::FineTune::Q_PROJ);
         s.mutable_fine_tune()->add_target_modules(v1::FineTune::Q_PROJ);
       }},
      {"job.spec.fine_tune.micro_batch_size", "1 to batch_size (4), is 5",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->set_batch_size(4);
         s.mutable_fine_tune()->set_micro_batch_size(5);
       }},
      {"job.spec.fine_tune.schedule", "99",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->set_schedule(static_cast<v1::FineTune::Schedule>(99));
       }},
      {"job.spec.fine_tune.weight_decay", "[0, 1]",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_weight_decay(-0.1); }},
      {"job.spec.fine_tune.compute_type", "99",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->set_compute_type(static_cast<v1::FineTune::ComputeType>(99));
       }},
      {"job.spec.fine_tune.checkpoint_every", "0 to 100000",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_checkpoint_every(-1); }},
      {"job.spec.fine_tune.evaluate_every", "1 to 100000",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_evaluate_every(0); }},
      {"job.spec.fine_tune.data_format", "99",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->set_data_format(static_cast<v1::FineTune::DataFormat>(99));
       }},
      {"job.spec.fine_tune.packing", "TEXT",
       [](auto&, auto& s) {
         s.mutable_fine_tune()->set_data_format(v1::FineTune::ALPACA);
         s.mutable_fine_tune()->mutable_dataset()->set_uri("file:///a.json");
         s.mutable_fine_tune()->set_packing(true);
       }},
      {"job.spec.fine_tune.dataset.uri", "JSON list",
       [](auto&, auto& s) { s.mutable_fine_tune()->set_data_format(v1::FineTune::ALPACA); }},
      {"job.spec.fine_tune.distillation.weight", "(0, 1], is 0",
       [](auto&, auto& s) { s.mutable_fine_tune()->mutable_distillation()->set_weight(0); }},
      {"job.spec.fine_tune.distillation.temperature", "[0.1, 20]",
       [](auto&, auto& s) { s.mutable_fine_tune()->mutable_distillation()->set_temperature(0); }},
      {"job.spec.fine_tune.max_gradient_norm", "[0, 1000]",
       [nan](auto&, auto& s) { s.mutable_fine_tune()->set_max_gradient_norm(nan); }},
      {"job.spec.evaluation.sequence_length", "16 to 8192",
       [](auto&, auto& s) { s.mutable_evaluation()->set_sequence_length(8193); }},
      {"job.spec.evaluation.max_selection_tokens", "256",
       [](auto&, auto& s) { s.mutable_evaluation()->set_max_selection_tokens(255); }},
      {"job.spec.evaluation.max_test_tokens", "256",
       [](auto&, auto& s) { s.mutable_evaluation()->set_max_test_tokens(255); }},
      {"job.spec.export.formats[0]", "not 4 bits as they are asked for",
       [](auto&, auto& s) { s.mutable_export_()->add_formats(v1::Export::COMPRESSED_TENSORS); }},
      {"job.spec.export.formats[1]", "candidate_bits 4 or 8, not both",
       [](auto&, auto& s) {
         s.mutable_export_()->add_formats(v1::Export::HUGGING_FACE);
         s.mutable_export_()->add_formats(v1::Export::BITSANDBYTES);
       }},
      {"job.spec.export.formats[0]", "pruning.layout UNIFORM",
       [](auto&, auto& s) {
         s.mutable_export_()->add_formats(v1::Export::BITSANDBYTES);
         s.mutable_search()->add_candidate_bits(4);
         s.mutable_pruning()->set_layout(v1::Pruning::PER_LAYER);
         s.mutable_pruning()->set_ratio(0.2);
       }},
      {"job.spec.export.formats[1]", "HUGGING_FACE twice",
       [](auto&, auto& s) {
         s.mutable_export_()->add_formats(v1::Export::HUGGING_FACE);
         s.mutable_export_()->add_formats(v1::Export::HUGGING_FACE);
       }},
      {"job.spec.export.formats[0]", "99",
       [](auto&, auto& s) {
         s.mutable_export_()->add_formats(static_cast<v1::Export::Format>(99));
       }},
      {"job.spec.export.adapter", "fine_tune.steps is 0",
       [](auto&, auto& s) {
         s.mutable_export_()->set_adapter(v1::Export::BESIDE);
         s.mutable_fine_tune()->set_steps(0);
       }},
      {"job.spec.evaluation.stride", "1 to sequence_length (512), is 513",
       [](auto&, auto& s) { s.mutable_evaluation()->set_stride(513); }},
      {"job.spec.evaluation.stride", "1 to sequence_length (512), is 0",
       [](auto&, auto& s) { s.mutable_evaluation()->set_stride(0); }},
      {"job.spec.evaluation.compute_type", "not a value this server knows: 7",
       [](auto&, auto& s) {
         s.mutable_evaluation()->set_compute_type(static_cast<v1::Evaluation::ComputeType>(7));
       }},
      {"job.spec.evaluation.tasks[0].name", "[a-z0-9]", [](auto&, auto& s) { AddTask(s, "PIQA"); }},
      {"job.spec.evaluation.tasks[1].name", "taken",
       [](auto&, auto& s) { AddTask(s, "piqa"), AddTask(s, "piqa"); }},
      {"job.spec.evaluation.tasks[0].uri",
       "names nothing that is shipped: \"builtin://piqa\"; it must be file:///absolute/path",
       [](auto&, auto& s) { AddTask(s, "piqa").set_uri("builtin://piqa"); }},
      {"job.spec.evaluation.tasks[0].uri", "is required",
       [](auto&, auto& s) { AddTask(s, "piqa").clear_uri(); }},
      {"job.spec.evaluation.tasks[0].limit", "0 to 1000000",
       [](auto&, auto& s) { AddTask(s, "piqa").set_limit(-1); }},
      {"job.spec.evaluation.tasks[0].query_suffix", "256 bytes",
       [](auto&, auto& s) { AddTask(s, "piqa").set_query_suffix(std::string(257, 'x')); }},
      {"job.spec.evaluation.tasks", "at most 32, are 33",
       [](auto&, auto& s) {
         for (int i = 0; i < 33; ++i) AddTask(s, absl::StrCat("task", i));
       }},
      {"job.spec.limits.device_memory_bytes", "at least 67108864 bytes, is 1000",
       [](auto&, auto& s) { s.mutable_limits()->set_device_memory_bytes(1000); }},
      {"job.spec.limits.max_attempts", "1 to 20",
       [](auto&, auto& s) { s.mutable_limits()->set_max_attempts(21); }},
      {"job.spec.limits.max_queue_seconds", "from 1 to 31536000, is 0",
       [](auto&, auto& s) { s.mutable_limits()->set_max_queue_seconds(0); }},
      {"job.spec.limits.max_run_seconds", "from 1 to 31536000, is -1",
       [](auto&, auto& s) { s.mutable_limits()->set_max_run_seconds(-1); }},
      {"job.spec.limits.max_device_seconds", "from 1 to 31536000, is 31536001",
       [](auto&, auto& s) { s.mutable_limits()->set_max_device_seconds(31'536'001); }},
      {"job.spec.limits.min_device_memory_bytes", "from 0 to 1125899906842624, is -1",
       [](auto&, auto& s) { s.mutable_limits()->set_min_device_memory_bytes(-1); }},
      {"job.spec.limits.max_search_seconds", "from 1 to 31536000, is 0",
       [](auto&, auto& s) { s.mutable_limits()->set_max_search_seconds(0); }},
  };
  for (const Case& test : cases) {
    v1::CreateJobRequest request = Smallest();
    test.change(request, *request.mutable_job()->mutable_spec());
    const auto violations = FieldViolations(ValidateCreateJob(request, {}).status());
    ASSERT_EQ(violations.size(), 1u)
        << test.field << " " << test.text << ": " << ValidateCreateJob(request, {}).status();
    EXPECT_EQ(violations[0].field, test.field);
    EXPECT_THAT(violations[0].description, testing::HasSubstr(test.text)) << test.field;
  }
}

TEST(JobValidation, ExportsThatHoldTheCandidatesAreTaken) {
  const auto ok = [](v1::Export::Format format, std::vector<int> bits,
                     v1::Quantization::FourBit four_bit) {
    v1::CreateJobRequest request = Smallest();
    v1::CompressionSpec& spec = *request.mutable_job()->mutable_spec();
    for (const int width : bits) spec.mutable_search()->add_candidate_bits(width);
    spec.mutable_search()->set_max_average_bits(16);
    spec.mutable_quantization()->set_four_bit(four_bit);
    spec.mutable_quantization()->set_symmetric(format == v1::Export::COMPRESSED_TENSORS);
    spec.mutable_export_()->add_formats(format);
    return ValidateCreateJob(request, {}).ok();
  };
  EXPECT_TRUE(ok(v1::Export::COMPRESSED_TENSORS, {4, 8, 16}, v1::Quantization::INT4_GROUP));
  EXPECT_FALSE(ok(v1::Export::COMPRESSED_TENSORS, {3, 16}, v1::Quantization::INT4_GROUP));
  EXPECT_TRUE(ok(v1::Export::BITSANDBYTES, {4, 16}, v1::Quantization::FP4));
  EXPECT_TRUE(ok(v1::Export::BITSANDBYTES, {8}, v1::Quantization::INT4_GROUP));
  EXPECT_FALSE(ok(v1::Export::BITSANDBYTES, {4}, v1::Quantization::INT4_GROUP));
}

TEST(JobValidation, TheSmallestBudgetIsWhatTheFormatsStore) {
  const auto smallest = [](const Change& change) {
    v1::CreateJobRequest request = Smallest();
    v1::CompressionSpec& spec = *request.mutable_job()->mutable_spec();
    change(request, spec);
    spec.mutable_search()->set_max_average_bits(0.5);
    const auto violations = FieldViolations(ValidateCreateJob(request, {}).status());
    EXPECT_EQ(violations.size(), 1u);
    return violations.empty() ? "" : violations[0].description;
  };
  EXPECT_THAT(
      smallest([](auto&, auto& s) { s.mutable_quantization()->set_double_quantization(true); }),
      testing::HasSubstr("4.12695"));
  EXPECT_THAT(smallest([](auto&, auto& s) {
                s.mutable_search()->add_candidate_bits(2);
                s.mutable_search()->add_candidate_bits(16);
              }),
              testing::HasSubstr("at least 2.5 bits"));
  EXPECT_THAT(smallest([](auto&, auto& s) {
                s.mutable_search()->add_candidate_bits(3);
                s.mutable_quantization()->set_low_bit(v1::Quantization::INTEGER_GROUP);
                s.mutable_quantization()->set_group_size(32);
              }),
              testing::HasSubstr("3.59375"));
  EXPECT_THAT(smallest([](auto&, auto& s) {
                s.mutable_search()->add_candidate_bits(5);
                s.mutable_quantization()->set_symmetric(true);
              }),
              testing::HasSubstr("5.25"));
}

TEST(JobValidation, FilesMustLieBelowAnAllowedRoot) {
  v1::CreateJobRequest request = Smallest();
  const JobValidationOptions options{.model_roots = {"/models", "/data/"}};
  auto allowed = [&](const char* uri) {
    request.mutable_job()->mutable_spec()->mutable_model()->set_uri(uri);
    return ValidateCreateJob(request, options).ok();
  };
  EXPECT_TRUE(allowed("file:///models/llama"));
  EXPECT_TRUE(allowed("file:///data/llama"));
  EXPECT_FALSE(allowed("file:///models-of-others/llama"));
  EXPECT_FALSE(allowed("file:///etc"));

  const absl::Status none = ValidateCreateJob(request, {.model_roots = {}}).status();
  ASSERT_EQ(FieldViolations(none).size(), 1u) << none;
  EXPECT_EQ(FieldViolations(none)[0].field, "job.spec.model.uri");
  EXPECT_THAT(FieldViolations(none)[0].description,
              testing::HasSubstr("this server allows no folder (--model-root)"));
}

TEST(JobValidation, FingerprintIgnoresTheRequestIdAndNothingElse) {
  v1::CreateJobRequest a = Smallest(), b = Smallest();
  b.set_request_id("other");
  EXPECT_EQ(ValidateCreateJob(a, {})->fingerprint, ValidateCreateJob(b, {})->fingerprint);
  b.mutable_job()->set_priority(1);
  EXPECT_NE(ValidateCreateJob(a, {})->fingerprint, ValidateCreateJob(b, {})->fingerprint);
}

}  // namespace
}  // namespace qpruner::server
