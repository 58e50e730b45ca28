// Drives the real engine process over its socket, as the agent does.
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/child_process.h"
#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/message_stream.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/engine.pb.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using internal::v1::EngineReply;
using internal::v1::EngineRequest;
using internal::v1::TaskResult;
using internal::v1::TaskSpec;
using ::testing::HasSubstr;

std::string Environment(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

// All of a result but what differs from run to run.
std::string Repeatable(TaskResult result) {
  EXPECT_GT(result.use().seconds(), 0);
  EXPECT_GT(result.use().peak_host_memory_bytes(), 0);
  result.clear_use();
  const auto clear = [](v1::ModelMetrics* metrics) { metrics->clear_tokens_per_second(); };
  if (result.has_prepare()) {
    auto& prepare = *result.mutable_prepare();
    clear(prepare.mutable_original_test());
    clear(prepare.mutable_pruned_test());
    clear(prepare.mutable_pruned_selection());
  } else if (result.has_trial()) {
    clear(result.mutable_trial()->mutable_selection());
    if (result.trial().has_test()) clear(result.mutable_trial()->mutable_test());
  } else {
    auto& finalize = *result.mutable_finalize();
    clear(finalize.mutable_chosen_test());
    if (finalize.has_fine_tuned_test()) clear(finalize.mutable_fine_tuned_test());
    if (finalize.has_gguf_test()) clear(finalize.mutable_gguf_test());
    if (finalize.has_base_test()) clear(finalize.mutable_base_test());
  }
  return result.SerializeAsString();
}

class EngineTest : public ::testing::Test {
 protected:
  EngineTest() {
    char pattern[] = "/tmp/qpruner_engine_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    data_ = fs::path(Environment("QPRUNER_SOURCE_DIR")) / "data";
    WriteTask("the little girl.");
    int sockets[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    auto child = ChildProcess::Spawn({.argv = {Environment("QPRUNER_BIN_DIR") + "/qpruner-engine",
                                               "--device", "cpu", "--writable", folder_.string()},
                                      .inherited_fds = {sockets[1]}});
    close(sockets[1]);
    stream_ = std::make_unique<MessageStream>(sockets[0]);
    EXPECT_TRUE(child.ok()) << child.status();
    child_ = *std::move(child);
    EngineReply hello;
    EXPECT_TRUE(stream_->Read(hello, absl::Seconds(60)).ok());
    EXPECT_EQ(hello.hello().device(), "cpu");
  }
  ~EngineTest() override {
    child_.reset();
    fs::remove_all(folder_);
  }

  // Small enough for seconds, with every stage in it.
  TaskSpec Task() const {
    TaskSpec task;
    auto& spec = *task.mutable_spec();
    spec.mutable_model()->set_uri("builtin://stories260k");
    spec.mutable_calibration()->set_sample_count(4);
    spec.mutable_calibration()->set_sequence_length(64);
    spec.mutable_pruning()->set_ratio(0.25);
    spec.mutable_evaluation()->set_sequence_length(128);
    spec.mutable_evaluation()->set_max_selection_tokens(600);
    spec.mutable_evaluation()->set_max_test_tokens(600);
    auto& questions = *spec.mutable_evaluation()->add_tasks();
    questions.set_name("questions");
    questions.set_uri("file://" + (folder_ / "questions.jsonl").string());
    spec.mutable_fine_tune()->set_steps(6);
    spec.mutable_fine_tune()->set_warmup_steps(1);
    spec.mutable_fine_tune()->set_batch_size(2);
    spec.mutable_fine_tune()->set_sequence_length(64);
    return task;
  }

  // Two questions, `choice` among the first one's.
  void WriteTask(const std::string& choice) const {
    std::ofstream(folder_ / "questions.jsonl")
        << R"({"query": "Once upon a time, there was", "choices": ["a little girl.", ")" << choice
        << R"("], "gold": 0})"
        << "\n"
        << R"({"context_options": ["Lily", "The sun"], "continuation": "was sad.", "gold": 0})";
  }

  // The task's outputs become inputs of `task` too, as through the artifact store.
  absl::StatusOr<TaskResult> Run(const TaskSpec& task, const std::string& name) {
    EngineRequest request;
    request.set_request_id(++requests_);
    *request.mutable_task() = task;
    request.set_input_dir(inputs_.string());
    request.set_output_dir((folder_ / name).string());
    request.set_builtin_dir(data_.string());
    fs::create_directories(folder_ / name);
    EXPECT_TRUE(stream_->Write(request).ok());
    double fraction = 0;
    while (true) {
      EngineReply reply;
      // The protocol promises a word a second; a loaded machine gets ten.
      if (absl::Status status = stream_->Read(reply, absl::Seconds(10)); !status.ok()) {
        return status;
      }
      EXPECT_EQ(reply.request_id(), requests_);
      if (reply.has_error()) return FromRpcStatus(reply.error());
      if (reply.has_result()) return reply.result();
      for (const auto& line : reply.progress().logs()) absl::StrAppend(&log_, line.text(), "\n");
      if (!reply.progress().checkpoint().empty()) {
        checkpoint_.clear();
        for (const auto& file : reply.progress().checkpoint()) checkpoint_.push_back(file.path());
      }
      EXPECT_GE(reply.progress().fraction(), fraction);
      fraction = reply.progress().fraction();
    }
  }
  absl::StatusOr<TaskResult> Prepare(const std::string& name) {
    TaskSpec task = Task();
    task.mutable_prepare();
    auto result = Run(task, name);
    inputs_ = folder_ / name;
    return result;
  }
  // A task on what was prepared, all groups at `bits`.
  template <typename Work>
  static void Assign(const TaskResult& prepared, int bits, TaskSpec& task, Work& work) {
    *task.mutable_inputs() = prepared.outputs();
    for (const auto& group : prepared.prepare().groups()) {
      auto& precision = *work.add_precisions();
      precision.set_group(group.name());
      precision.set_bits(bits);
    }
  }
  static std::map<std::string, std::string> Digests(const TaskResult& result) {
    std::map<std::string, std::string> digests;
    for (const auto& output : result.outputs()) digests[output.path()] = output.sha256();
    return digests;
  }
  // A copy of the shipped model that a test may spoil.
  fs::path CopyModel() {
    const fs::path copy = folder_ / absl::StrCat("model-", ++copies_);
    fs::copy(data_ / "models/stories260k", copy);
    return copy;
  }

  fs::path folder_;
  fs::path data_;
  fs::path inputs_;
  std::unique_ptr<ChildProcess> child_;
  std::unique_ptr<MessageStream> stream_;
  int64_t requests_ = 0;
  std::string log_;                      // All lines of all tasks.
  std::vector<std::string> checkpoint_;  // The last that was told.
  int copies_ = 0;
};

TEST_F(EngineTest, GoesFromAModelToAnExportAndTheSameWayTwice) {
  const auto prepared = Prepare("prepare");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto again = Prepare("prepare-again");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Digests(*prepared), Digests(*again));
  EXPECT_EQ(Repeatable(*prepared), Repeatable(*again));

  const auto& space = prepared->prepare();
  ASSERT_EQ(space.groups_size(), 5 * 4);
  EXPECT_EQ(space.groups(0).name(), "model.layers.0.attn_qkv");
  EXPECT_EQ(space.groups(0).choices_size(), 3);
  EXPECT_EQ(space.original_test().kl_divergence(), 0);
  EXPECT_LT(space.original_test().perplexity(), space.pruned_test().perplexity());
  EXPECT_LT(space.pruned_test().parameter_count(), space.original_test().parameter_count());
  EXPECT_TRUE(Digests(*prepared).count("prepared/reference.safetensors"));
  EXPECT_TRUE(Digests(*prepared).count("report/scores.json"));

  // Before the other tasks run, the file changes: they read what PREPARE kept.
  WriteTask("");
  for (const auto* metrics : {&space.original_test(), &space.pruned_test()}) {
    ASSERT_EQ(metrics->tasks_size(), 1);
    EXPECT_EQ(metrics->tasks(0).name(), "questions");
    EXPECT_EQ(metrics->tasks(0).item_count(), 2);
    EXPECT_TRUE(metrics->tasks(0).has_acc());
    EXPECT_FALSE(metrics->tasks(0).has_acc_norm()) << "one item's choices are contexts";
  }
  EXPECT_TRUE(Digests(*prepared).count("report/tasks.original.jsonl"));

  std::map<int, internal::v1::TrialResult> trials;
  for (const int bits : {4, 8, 16}) {
    TaskSpec task = Task();
    task.mutable_trial()->set_index(1);
    task.mutable_trial()->set_measure_on_test(true);
    Assign(*prepared, bits, task, *task.mutable_trial());
    const auto first = Run(task, absl::StrCat("trial-", bits));
    ASSERT_TRUE(first.ok()) << first.status();
    const auto second = Run(task, absl::StrCat("trial-again-", bits));
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_EQ(Repeatable(*first), Repeatable(*second));
    trials[bits] = first->trial();
    // What the search was told is what is measured.
    int64_t bytes = space.fixed_bytes();
    for (const auto& group : space.groups()) {
      for (const auto& choice : group.choices()) {
        if (choice.bits() == bits) bytes += choice.bytes();
      }
    }
    EXPECT_EQ(first->trial().selection().weight_bytes(), bytes);
  }
  EXPECT_LT(trials[4].test().weight_bytes(), trials[8].test().weight_bytes());
  EXPECT_LT(trials[8].test().weight_bytes(), trials[16].test().weight_bytes());
  EXPECT_GT(trials[4].test().kl_divergence(), trials[8].test().kl_divergence());
  // bfloat16 is all but lossless: three digits of a perplexity near that of the pruned model.
  EXPECT_NEAR(trials[16].test().perplexity() / space.pruned_test().perplexity(), 1, 5e-3);

  TaskSpec task = Task();
  task.mutable_spec()->mutable_export_()->add_formats(qpruner::v1::Export::HUGGING_FACE);
  task.mutable_spec()->mutable_export_()->add_formats(qpruner::v1::Export::GGUF);
  Assign(*prepared, 4, task, *task.mutable_finalize());
  const auto final = Run(task, "finalize");
  ASSERT_TRUE(final.ok()) << final.status();
  const auto final_again = Run(task, "finalize-again");
  ASSERT_TRUE(final_again.ok()) << final_again.status();
  EXPECT_EQ(Digests(*final), Digests(*final_again));
  // The same weights as the uniform trial's.
  EXPECT_EQ(final->finalize().chosen_test().perplexity(), trials[4].test().perplexity());
  EXPECT_GT(final->finalize().adapter_bytes(), 0);
  EXPECT_EQ(final->finalize().chosen_test().tasks_size(), 1);
  EXPECT_EQ(final->finalize().fine_tuned_test().tasks_size(), 1);
  EXPECT_TRUE(Digests(*final).count("report/tasks.fine-tuned.jsonl"));
  EXPECT_GE(final->finalize().curve_size(), 2);
  EXPECT_TRUE(std::isfinite(final->finalize().fine_tuned_test().perplexity()));
  EXPECT_FALSE(final->finalize().has_base_test()) << "the base is the trial's weights";
  for (const char* path :
       {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/README.md",
        "quantized/quantization.json", "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json", "gguf/model.gguf", "gguf/README.md"}) {
    EXPECT_TRUE(Digests(*final).count(path)) << path;
  }
  // Merged weights, quantized into another 4-bit grid: what that costs is the file's own.
  EXPECT_TRUE(std::isfinite(final->finalize().gguf_test().perplexity()));

  // What is reported of the export is what measuring the exported folder gives.
  TaskSpec measured = Task();
  measured.mutable_spec()->mutable_model()->set_uri("file://" +
                                                    (folder_ / "finalize/model").string());
  measured.mutable_spec()->mutable_pruning()->set_ratio(0);
  measured.mutable_spec()->mutable_evaluation()->clear_tasks();
  measured.mutable_prepare();
  const auto exported = Run(measured, "measure-export");
  ASSERT_TRUE(exported.ok()) << exported.status();
  // The same weights in the same computation.
  EXPECT_DOUBLE_EQ(exported->prepare().original_test().perplexity(),
                   final->finalize().fine_tuned_test().perplexity());

  TaskSpec plain = Task();
  plain.mutable_spec()->mutable_fine_tune()->set_steps(0);
  plain.mutable_spec()->mutable_export_()->add_formats(qpruner::v1::Export::GGUF);
  Assign(*prepared, 8, plain, *plain.mutable_finalize());
  const auto untuned = Run(plain, "finalize-plain");
  ASSERT_TRUE(untuned.ok()) << untuned.status();
  EXPECT_FALSE(untuned->finalize().has_fine_tuned_test());
  EXPECT_EQ(untuned->finalize().adapter_bytes(), 0);
  EXPECT_FALSE(Digests(*untuned).count("model/config.json"));
  // 8 bits either way: Q8_0 and int8-row, both from the pruned weights.
  EXPECT_NEAR(untuned->finalize().gguf_test().perplexity(),
              untuned->finalize().chosen_test().perplexity(),
              0.01 * untuned->finalize().chosen_test().perplexity());

  // The GGUF file as a model: measured as reported, and exported again.
  TaskSpec from_gguf = measured;
  from_gguf.mutable_spec()->mutable_model()->set_uri(
      "file://" + (folder_ / "finalize-plain/gguf/model.gguf").string());
  from_gguf.mutable_spec()->mutable_export_()->add_formats(qpruner::v1::Export::GGUF);
  const auto read = Run(from_gguf, "measure-gguf");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_DOUBLE_EQ(read->prepare().original_test().perplexity(),
                   untuned->finalize().gguf_test().perplexity());
}

// More than one iteration of LoftQ changes the base: the report's row is of what is stored.
TEST_F(EngineTest, ABaseThatLoftqHasChangedIsMeasuredAsItIsStored) {
  const auto prepared = Prepare("prepare");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  TaskSpec task = Task();
  auto& spec = *task.mutable_spec();
  spec.mutable_evaluation()->clear_tasks();
  spec.mutable_fine_tune()->set_loftq_iterations(3);
  spec.mutable_export_()->add_formats(v1::Export::HUGGING_FACE);
  spec.mutable_export_()->add_formats(v1::Export::BITSANDBYTES);
  spec.mutable_export_()->set_adapter(v1::Export::BESIDE);
  spec.mutable_export_()->set_dtype(v1::Export::FLOAT32);
  Assign(*prepared, 4, task, *task.mutable_finalize());
  const auto final = Run(task, "finalize");
  ASSERT_TRUE(final.ok()) << final.status();
  const internal::v1::FinalizeResult& result = final->finalize();
  ASSERT_TRUE(result.has_base_test());
  EXPECT_NE(result.base_test().perplexity(), result.chosen_test().perplexity());
  EXPECT_EQ(result.base_test().weight_bytes(), result.chosen_test().weight_bytes());
  // With the adapter beside it and no rounding, model/ is the base that quantized/ holds.
  TaskSpec measured = Task();
  measured.mutable_spec()->mutable_model()->set_uri("file://" +
                                                    (folder_ / "finalize/model").string());
  measured.mutable_spec()->mutable_pruning()->set_ratio(0);
  measured.mutable_spec()->mutable_evaluation()->clear_tasks();
  measured.mutable_prepare();
  const auto stored = Run(measured, "measure-base");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_DOUBLE_EQ(stored->prepare().original_test().perplexity(), result.base_test().perplexity());
  EXPECT_THAT(*ReadFile((folder_ / "finalize/bitsandbytes/README.md").string(), 1 << 20),
              HasSubstr("of the row \"stored base, without the adapter\""));
}

// Instruction data, distillation, dropout, few targets and accumulation in one run, which is then
// repeated from its last checkpoint.
TEST_F(EngineTest, AnInterruptedRecoveryGoesOnToTheSameResult) {
  const fs::path data = folder_ / "instructions.json";
  {
    std::ofstream file(data);
    file << "[";
    for (int i = 0; i < 30; ++i) {
      file << (i > 0 ? "," : "") << R"({"instruction": "Tell of day )" << i
           << R"(.", "input": "", "output": "It was a sunny day and )" << i << R"( birds sang."})";
    }
    file << "]";
  }
  TaskSpec prepare = Task();
  const auto configure = [&](TaskSpec& task) {
    v1::FineTune& tune = *task.mutable_spec()->mutable_fine_tune();
    tune.mutable_dataset()->set_uri("file://" + data.string());
    tune.set_data_format(v1::FineTune::ALPACA);
    tune.set_sequence_length(256);
    tune.set_micro_batch_size(1);
    tune.set_dropout(0.1);
    tune.add_target_modules(v1::FineTune::Q_PROJ);
    tune.add_target_modules(v1::FineTune::DOWN_PROJ);
    tune.set_schedule(v1::FineTune::LINEAR);
    tune.set_checkpoint_every(2);
    tune.mutable_distillation()->set_weight(0.7);
  };
  configure(prepare);
  prepare.mutable_prepare();
  const auto prepared = Run(prepare, "prepare");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  inputs_ = folder_ / "prepare";

  TaskSpec task = Task();
  configure(task);
  Assign(*prepared, 4, task, *task.mutable_finalize());
  const auto whole = Run(task, "whole");
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->finalize().curve_size(), 2);  // 0 and 6.
  EXPECT_TRUE(Digests(*whole).count("adapter/adapter_model.safetensors"));
  const std::string checkpoint = "checkpoint/training-4.safetensors";
  EXPECT_THAT(checkpoint_, testing::ElementsAre(checkpoint));
  EXPECT_FALSE(Digests(*whole).count(checkpoint));
  EXPECT_EQ(log_.find("goes on"), std::string::npos);

  fs::create_directories(inputs_ / "checkpoint");
  fs::copy_file(folder_ / "whole" / checkpoint, inputs_ / checkpoint);
  const auto resumed = Run(task, "resumed");
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_THAT(log_, HasSubstr("goes on after step 4"));
  EXPECT_EQ(Repeatable(*resumed), Repeatable(*whole));

  // One that is not readable costs time alone.
  fs::resize_file(inputs_ / checkpoint, 100);
  const auto restarted = Run(task, "restarted");
  ASSERT_TRUE(restarted.ok()) << restarted.status();
  EXPECT_THAT(log_, HasSubstr("starts from the beginning"));
  EXPECT_EQ(Repeatable(*restarted), Repeatable(*whole));
}

TEST_F(EngineTest, ExportsWhatServingEnginesRead) {
  // All heads and 128 MLP channels stay: rows of whole groups.
  TaskSpec unscaled = Task();
  unscaled.mutable_spec()->mutable_pruning()->set_ratio(0.24);
  TaskSpec asked = unscaled;
  auto& spec = *asked.mutable_spec();
  spec.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
  spec.mutable_quantization()->set_group_size(32);
  spec.mutable_quantization()->set_symmetric(true);
  spec.mutable_quantization()->set_activation_scaling(true);
  spec.mutable_export_()->add_formats(v1::Export::HUGGING_FACE);
  spec.mutable_export_()->add_formats(v1::Export::COMPRESSED_TENSORS);
  spec.mutable_export_()->set_adapter(v1::Export::BESIDE);
  TaskSpec prepare = asked;
  prepare.mutable_prepare();
  const auto prepared = Run(prepare, "prepare-serving");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  // The scaled model is the pruned model: without scaling it measures the same.
  unscaled.mutable_prepare();
  const auto plain = Run(unscaled, "prepare-unscaled");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_NEAR(
      prepared->prepare().pruned_test().perplexity() / plain->prepare().pruned_test().perplexity(),
      1, 1e-4);
  inputs_ = folder_ / "prepare-serving";
  TaskSpec task = asked;
  Assign(*prepared, 4, task, *task.mutable_finalize());
  const auto final = Run(task, "finalize-serving");
  ASSERT_TRUE(final.ok()) << final.status();
  for (const char* path :
       {"model/model.safetensors", "compressed-tensors/model.safetensors",
        "compressed-tensors/config.json", "compressed-tensors/tokenizer.json",
        "compressed-tensors/README.md", "adapter/adapter_config.json", "adapter/README.md"}) {
    EXPECT_TRUE(Digests(*final).count(path)) << path;
  }
  EXPECT_FALSE(Digests(*final).count("bitsandbytes/config.json"));
  const std::string adapter =
      *ReadFile((folder_ / "finalize-serving/adapter/adapter_config.json").string(), 1 << 20);
  EXPECT_THAT(adapter, HasSubstr("\"base_model_name_or_path\": \"model\""));
  // With the adapter beside it, model/ is the quantized model alone.
  TaskSpec measured = Task();
  measured.mutable_spec()->mutable_model()->set_uri("file://" +
                                                    (folder_ / "finalize-serving/model").string());
  measured.mutable_spec()->mutable_pruning()->set_ratio(0);
  measured.mutable_prepare();
  const auto exported = Run(measured, "measure-base");
  ASSERT_TRUE(exported.ok()) << exported.status();
  // bfloat16 rounds the dequantized weights once more.
  EXPECT_NEAR(exported->prepare().original_test().perplexity() /
                  final->finalize().chosen_test().perplexity(),
              1, 5e-3);

  // 172 channels are no whole groups: refused before any work is done.
  prepare.mutable_spec()->mutable_pruning()->set_ratio(0);
  const auto refused = Run(prepare, "refused");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("172"));
}

TEST_F(EngineTest, GptqQuantizesOnceAndLosesLessThanRounding) {
  // Every width there is, integers where there is a choice.
  const auto with = [&](v1::Quantization::Method method) {
    TaskSpec task = Task();
    auto& spec = *task.mutable_spec();
    spec.mutable_calibration()->set_sample_count(24);
    spec.mutable_pruning()->set_ratio(0);
    spec.mutable_fine_tune()->set_steps(2);
    spec.mutable_search()->set_granularity(v1::Search::BLOCK);
    for (const int bits : {2, 3, 4, 5, 6, 7, 8, 16})
      spec.mutable_search()->add_candidate_bits(bits);
    spec.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
    spec.mutable_quantization()->set_eight_bit(v1::Quantization::INT8_GROUP);
    spec.mutable_quantization()->set_group_size(32);
    spec.mutable_quantization()->set_method(method);
    return task;
  };
  std::map<int, std::map<int, internal::v1::TrialResult>> trials;  // [method][bits]
  for (const auto method : {v1::Quantization::ROUND_TO_NEAREST, v1::Quantization::GPTQ}) {
    TaskSpec prepare = with(method);
    prepare.mutable_prepare();
    const auto prepared = Run(prepare, absl::StrCat("prepare-", method));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    inputs_ = folder_ / absl::StrCat("prepare-", method);
    EXPECT_EQ(Digests(*prepared).count("prepared/weights/block-00004.safetensors"),
              method == v1::Quantization::GPTQ ? 1u : 0u);
    EXPECT_EQ(prepared->prepare().groups(0).choices_size(), 8);
    for (const int bits : {2, 3, 4, 8}) {
      TaskSpec task = with(method);
      task.mutable_trial()->set_index(1);
      task.mutable_trial()->set_measure_on_test(true);
      Assign(*prepared, bits, task, *task.mutable_trial());
      const auto trial = Run(task, absl::StrCat("trial-", method, "-", bits));
      ASSERT_TRUE(trial.ok()) << trial.status();
      trials[method][bits] = trial->trial();
    }
    if (method != v1::Quantization::GPTQ) continue;
    // The same weights in FINALIZE, with LoftQ's adapter on them.
    TaskSpec task = with(method);
    Assign(*prepared, 3, task, *task.mutable_finalize());
    const auto final = Run(task, "finalize-gptq");
    ASSERT_TRUE(final.ok()) << final.status();
    EXPECT_EQ(final->finalize().chosen_test().perplexity(), trials[method][3].test().perplexity());
  }
  for (const int bits : {2, 3, 4}) {
    const auto& rounded = trials[v1::Quantization::ROUND_TO_NEAREST][bits].test();
    const auto& corrected = trials[v1::Quantization::GPTQ][bits].test();
    EXPECT_EQ(corrected.weight_bytes(), rounded.weight_bytes());
    EXPECT_LT(corrected.kl_divergence(), rounded.kl_divergence()) << bits << " bits";
    RecordProperty(absl::StrCat("kl_", bits, "_rtn"), absl::StrCat(rounded.kl_divergence()));
    RecordProperty(absl::StrCat("kl_", bits, "_gptq"), absl::StrCat(corrected.kl_divergence()));
  }
}

TEST_F(EngineTest, EvaluatesInRollingWindows) {
  TaskSpec task = Task();
  auto& spec = *task.mutable_spec();
  spec.mutable_pruning()->set_ratio(0);
  spec.mutable_evaluation()->set_sequence_length(64);
  spec.mutable_evaluation()->set_stride(60);
  task.mutable_prepare();
  const auto apart = Run(task, "apart");
  ASSERT_TRUE(apart.ok()) << apart.status();
  spec.mutable_evaluation()->set_stride(16);
  const auto prepared = Run(task, "rolling");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const v1::ModelMetrics& original = prepared->prepare().original_test();
  // The same tokens, each behind at least 48 others instead of 4: easier.
  EXPECT_EQ(original.token_count(), apart->prepare().original_test().token_count());
  EXPECT_LT(original.perplexity(), apart->prepare().original_test().perplexity());
  EXPECT_GT(original.tokens_per_second(), 0);
  // Trials measure over the same windows, with the original's states at their tokens.
  inputs_ = folder_ / "rolling";
  TaskSpec trial = task;
  trial.mutable_trial()->set_index(1);
  trial.mutable_trial()->set_measure_on_test(true);
  Assign(*prepared, 16, trial, *trial.mutable_trial());
  const auto measured = Run(trial, "trial");
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->trial().test().token_count(), original.token_count());
  // bfloat16 weights of a model that is stored in it or in float32.
  EXPECT_NEAR(measured->trial().test().perplexity() / original.perplexity(), 1, 0.01);
  EXPECT_LT(measured->trial().test().kl_divergence(), 0.001);
}

TEST_F(EngineTest, EvaluatesInTheTypeThatIsAskedFor) {
  TaskSpec task = Task();
  task.mutable_spec()->mutable_pruning()->set_ratio(0);
  task.mutable_prepare();
  const auto usual = Run(task, "usual");
  ASSERT_TRUE(usual.ok()) << usual.status();
  task.mutable_spec()->mutable_evaluation()->set_compute_type(v1::Evaluation::BFLOAT16);
  const auto rounded = Run(task, "rounded");
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  const double perplexity = usual->prepare().original_test().perplexity();
  EXPECT_NE(rounded->prepare().original_test().perplexity(), perplexity);
  // bfloat16 keeps three digits of each number; their errors mostly cancel in a mean.
  EXPECT_NEAR(rounded->prepare().original_test().perplexity() / perplexity, 1, 0.02);
  // Nothing was pruned: the same model, in the same arithmetic.
  for (const auto* result : {&*usual, &*rounded}) {
    EXPECT_EQ(result->prepare().pruned_test().kl_divergence(), 0);
    EXPECT_EQ(result->prepare().pruned_test().top1_agreement(), 1);
  }
}

TEST_F(EngineTest, SearchesWidthsAndPrunesInStepsWithinAMemoryLimit) {
  TaskSpec task = Task();
  auto& spec = *task.mutable_spec();
  spec.mutable_pruning()->clear_ratio();
  spec.mutable_pruning()->set_parameter_ratio(0.2);
  spec.mutable_pruning()->set_layout(v1::Pruning::PER_LAYER);
  spec.mutable_limits()->set_device_memory_bytes(int64_t{1} << 30);
  task.mutable_prepare();
  const auto searched = Run(task, "widths");
  ASSERT_TRUE(searched.ok()) << searched.status();
  const auto& space = searched->prepare();
  EXPECT_LE(static_cast<double>(space.pruned_test().parameter_count()),
            0.8 * static_cast<double>(space.original_test().parameter_count()));
  EXPECT_THAT(space.notes(), testing::Contains(testing::HasSubstr("Width search: of")));

  spec.mutable_pruning()->clear_parameter_ratio();
  spec.mutable_pruning()->set_ratio(0.3);
  spec.mutable_pruning()->set_selection(v1::Pruning::GLOBAL_PER_KIND);
  spec.mutable_pruning()->set_steps(2);
  const auto stepped = Run(task, "steps");
  ASSERT_TRUE(stepped.ok()) << stepped.status();
  EXPECT_LT(stepped->prepare().pruned_test().parameter_count(),
            space.original_test().parameter_count());

  spec.mutable_limits()->set_device_memory_bytes(int64_t{64} << 20);
  const auto refused = Run(task, "too-small");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()),
              testing::HasSubstr("limits.device_memory_bytes"));
}

// What the pruned model's shape alone forbids is refused before the original is measured, which the
// memory plan's line comes before.
TEST_F(EngineTest, ImpossibleTargetsAreRefusedBeforeAnyForwardPass) {
  const auto refuse = [&](const TaskSpec& task, absl::StatusCode code, const std::string& text) {
    const auto result = Run(task, absl::StrCat("impossible-", requests_));
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(text));
    EXPECT_EQ(log_, "");
  };
  TaskSpec small = Task();
  small.mutable_prepare();
  small.mutable_spec()->mutable_search()->set_max_bytes(100'000);
  refuse(small, absl::StatusCode::kFailedPrecondition, "search.max_bytes");

  TaskSpec widths = Task();
  widths.mutable_prepare();
  widths.mutable_spec()->mutable_pruning()->clear_ratio();
  widths.mutable_spec()->mutable_pruning()->set_parameter_ratio(0.95);
  refuse(widths, absl::StatusCode::kInvalidArgument, "pruning.parameter_ratio");
  widths.mutable_spec()->mutable_pruning()->set_parameter_ratio(0.2);
  widths.mutable_spec()->mutable_pruning()->set_alignment(1024);
  refuse(widths, absl::StatusCode::kInvalidArgument, "pruning.alignment");

  // 172 channels are no whole groups.
  TaskSpec exported = Task();
  exported.mutable_prepare();
  auto& spec = *exported.mutable_spec();
  spec.mutable_pruning()->set_ratio(0);
  spec.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
  spec.mutable_quantization()->set_group_size(32);
  spec.mutable_quantization()->set_symmetric(true);
  spec.mutable_export_()->add_formats(v1::Export::COMPRESSED_TENSORS);
  refuse(exported, absl::StatusCode::kInvalidArgument, "172");
}

// Enough memory for all but fine-tuning: known before any work, by the field's name.
TEST_F(EngineTest, FineTuningHonoursTheMemoryLimit) {
  constexpr int64_t kLimit = int64_t{256} << 20, kTooSmall = int64_t{224} << 20;
  TaskSpec task = Task();
  auto& spec = *task.mutable_spec();
  spec.mutable_limits()->set_device_memory_bytes(kLimit);
  spec.mutable_fine_tune()->set_batch_size(16);
  spec.mutable_fine_tune()->set_micro_batch_size(16);
  spec.mutable_fine_tune()->set_sequence_length(512);
  TaskSpec prepare = task;
  prepare.mutable_prepare();
  const auto prepared = Run(prepare, "prepare");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  inputs_ = folder_ / "prepare";
  Assign(*prepared, 4, task, *task.mutable_finalize());
  const auto tuned = Run(task, "finalize");
  ASSERT_TRUE(tuned.ok()) << tuned.status();
  EXPECT_THAT(log_, HasSubstr("fine_tune.micro_batch_size is lowered to"));

  spec.mutable_fine_tune()->mutable_distillation()->set_weight(0.5);
  prepare.mutable_spec()->CopyFrom(spec);
  prepare.mutable_spec()->mutable_limits()->set_device_memory_bytes(kTooSmall);
  log_.clear();
  const auto refused = Run(prepare, "refused");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("fine_tune.sequence_length"));
  EXPECT_EQ(log_, "");

  // PREPARE had more.
  task.mutable_spec()->mutable_limits()->set_device_memory_bytes(kTooSmall);
  const auto short_of = Run(task, "finalize-again");
  EXPECT_EQ(short_of.status().code(), absl::StatusCode::kResourceExhausted) << short_of.status();
}

// PREPARE may have run on a larger device. The server takes this code for an INFEASIBLE trial.
TEST_F(EngineTest, ATrialThatFitsNoBatchHasTooLittleMemory) {
  const auto prepared = Prepare("prepare");
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  TaskSpec task = Task();
  task.mutable_spec()->mutable_limits()->set_device_memory_bytes(int64_t{64} << 20);
  task.mutable_trial()->set_index(1);
  Assign(*prepared, 4, task, *task.mutable_trial());
  const auto trial = Run(task, "trial");
  EXPECT_EQ(trial.status().code(), absl::StatusCode::kResourceExhausted) << trial.status();
  EXPECT_THAT(std::string(trial.status().message()), HasSubstr("memory limit is too small"));
  task.mutable_spec()->clear_limits();
  EXPECT_TRUE(Run(task, "trial-again").ok());
}

TEST_F(EngineTest, BadInputIsRefusedByNameAndTheEngineLives) {
  const auto refuse = [&](const TaskSpec& bad, absl::StatusCode code, const std::string& text) {
    TaskSpec task = bad;
    task.mutable_prepare();
    const auto result = Run(task, absl::StrCat("bad-", requests_));
    EXPECT_EQ(result.status().code(), code) << result.status();
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(text));
  };
  TaskSpec task = Task();
  task.mutable_spec()->mutable_model()->set_uri("builtin://nothing");
  refuse(task, absl::StatusCode::kNotFound, "model.uri");
  task.mutable_spec()->mutable_model()->set_uri("builtin://../secret");
  refuse(task, absl::StatusCode::kInvalidArgument, "model.uri");

  const fs::path truncated = CopyModel();
  fs::resize_file(truncated / "model.safetensors", 5000);
  task.mutable_spec()->mutable_model()->set_uri("file://" + truncated.string());
  refuse(task, absl::StatusCode::kInvalidArgument, "model.safetensors");

  const fs::path unknown = CopyModel();
  std::string config = *ReadFile((unknown / "config.json").string(), 1 << 20);
  for (size_t at; (at = config.find("llama")) != std::string::npos;) config.replace(at, 5, "mamba");
  for (size_t at; (at = config.find("Llama")) != std::string::npos;) config.replace(at, 5, "Mamba");
  std::ofstream(unknown / "config.json") << config;
  task.mutable_spec()->mutable_model()->set_uri("file://" + unknown.string());
  refuse(task, absl::StatusCode::kInvalidArgument, "amba");

  // A tokenizer that can give ids which the embedding does not have.
  const fs::path tokenizer = CopyModel();
  std::string tokens = *ReadFile((tokenizer / "tokenizer.json").string(), 1 << 20);
  const size_t added = tokens.find("\"added_tokens\"");
  ASSERT_NE(added, std::string::npos);
  tokens.insert(tokens.find('[', added) + 1,
                R"({"id": 600, "content": "<beyond>", "single_word": false, "lstrip": false,)"
                R"( "rstrip": false, "normalized": false, "special": true},)");
  std::ofstream(tokenizer / "tokenizer.json") << tokens;
  task.mutable_spec()->mutable_model()->set_uri("file://" + tokenizer.string());
  refuse(task, absl::StatusCode::kInvalidArgument, "512");

  const fs::path text = folder_ / "short.txt";
  std::ofstream(text) << "Once.";
  task = Task();
  task.mutable_spec()->mutable_evaluation()->mutable_dataset()->set_uri("file://" + text.string());
  refuse(task, absl::StatusCode::kInvalidArgument, "evaluation");

  task = Task();
  task.mutable_spec()->mutable_pruning()->set_alignment(1024);
  refuse(task, absl::StatusCode::kInvalidArgument, "alignment");

  task = Task();
  WriteTask("");
  refuse(task, absl::StatusCode::kInvalidArgument, "evaluation.tasks[0]: ");
  refuse(task, absl::StatusCode::kInvalidArgument, "line 1: \"choices\" must not be empty");
  WriteTask("a dog.");
  task.mutable_spec()->mutable_evaluation()->mutable_tasks(0)->set_uri("file:///no/such");
  refuse(task, absl::StatusCode::kNotFound, "evaluation.tasks[0]: uri");

  // Nothing was prepared: a trial cannot run.
  task = Task();
  task.mutable_trial()->set_index(1);
  EXPECT_EQ(Run(task, "no-inputs").status().code(), absl::StatusCode::kFailedPrecondition);

  EXPECT_TRUE(Prepare("good").ok());
}

}  // namespace
}  // namespace qpruner::engine
