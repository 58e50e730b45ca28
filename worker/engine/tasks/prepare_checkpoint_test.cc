#include "worker/engine/tasks/prepare_checkpoint.h"

#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/spec_defaults.h"
#include "worker/engine/tasks/prepare_task.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using internal::v1::PrepareResult;
using ::testing::HasSubstr;
using ::testing::Not;

// Keeps each checkpoint as the next attempt would find it in its input folder.
class KeepingReporter final : public ProgressReporter {
 public:
  KeepingReporter(fs::path output, fs::path kept)
      : output_(std::move(output)), kept_(std::move(kept)) {}

  void Report(double fraction, const std::string&) override {
    EXPECT_GT(fraction, fraction_ - 1e-9);  // Ends of phases are rounded.
    fraction_ = fraction;
  }
  void Log(const std::string& text, bool) override { absl::StrAppend(&log, text, "\n"); }
  void Checkpoint(const std::vector<std::string>& paths) override {
    inputs.push_back(kept_ / std::to_string(inputs.size()));
    for (const std::string& path : paths) {
      const fs::path to = inputs.back() /
                          (absl::StartsWith(path, "checkpoint/") ? "" : "checkpoint/outputs") /
                          path;
      fs::create_directories(to.parent_path());
      fs::copy_file(output_ / path, to);
    }
  }

  std::string log;
  std::vector<fs::path> inputs;

 private:
  const fs::path output_;
  const fs::path kept_;
  double fraction_ = 0;
};

// Of one run: the result without what is measured in time, each output's content.
struct Outcome {
  std::string result;
  std::map<std::string, std::string> outputs;

  bool operator==(const Outcome&) const = default;
};

class PrepareCheckpointTest : public ::testing::Test {
 protected:
  PrepareCheckpointTest() {
    char pattern[] = "/tmp/qpruner_prepare_checkpoint_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    std::ofstream(folder_ / "questions.jsonl")
        << R"({"query": "Once upon a time, there was", "choices": ["a girl.", "sun."], "gold": 0})";
  }
  ~PrepareCheckpointTest() override { fs::remove_all(folder_); }

  // Small, with every stage that saves something.
  v1::CompressionSpec Spec() const {
    v1::CompressionSpec spec;
    spec.mutable_model()->set_uri("builtin://stories260k");
    spec.mutable_calibration()->set_sample_count(4);
    spec.mutable_calibration()->set_sequence_length(64);
    spec.mutable_pruning()->set_ratio(0.25);
    spec.mutable_quantization()->set_method(v1::Quantization::GPTQ);
    spec.mutable_quantization()->set_activation_scaling(true);
    spec.mutable_evaluation()->set_sequence_length(128);
    spec.mutable_evaluation()->set_max_selection_tokens(600);
    spec.mutable_evaluation()->set_max_test_tokens(600);
    auto& questions = *spec.mutable_evaluation()->add_tasks();
    questions.set_name("questions");
    questions.set_uri("file://" + (folder_ / "questions.jsonl").string());
    FillDefaults(spec);
    return spec;
  }

  // A run on what an earlier one has left in `inputs`.
  Outcome Run(const v1::CompressionSpec& spec, const fs::path& inputs) {
    const fs::path output = folder_ / absl::StrCat("output-", ++runs_);
    fs::create_directories(output);
    KeepingReporter progress(output, folder_ / absl::StrCat("kept-", runs_));
    absl::StatusOr<PrepareResult> result =
        RunPrepare(spec, inputs.string(), "data", output.string(), at::kCPU, RealClock(), progress);
    EXPECT_TRUE(result.ok()) << result.status();
    log_ = progress.log;
    kept_ = progress.inputs;
    Outcome outcome;
    if (!result.ok()) return outcome;
    for (auto* metrics : {result->mutable_original_test(), result->mutable_pruned_test(),
                          result->mutable_pruned_selection()}) {
      metrics->clear_tokens_per_second();
    }
    outcome.result = result->SerializeAsString();
    for (const auto& entry : fs::recursive_directory_iterator(output)) {
      const std::string path = fs::relative(entry.path(), output).string();
      if (!entry.is_regular_file() || absl::StartsWith(path, "checkpoint/")) continue;
      outcome.outputs[path] = *Sha256OfFile(entry.path().string());
    }
    return outcome;
  }

  fs::path folder_;
  int runs_ = 0;
  // Of the last run.
  std::string log_;
  std::vector<fs::path> kept_;
};

TEST_F(PrepareCheckpointTest, EachLeadsToTheResultOfAnUndisturbedRun) {
  const v1::CompressionSpec spec = Spec();
  const Outcome whole = Run(spec, folder_ / "nothing");
  EXPECT_EQ(whole.outputs.count("prepared/weights/block-00004.safetensors"), 1u);
  EXPECT_EQ(whole.outputs.count("report/tasks.pruned.jsonl"), 1u);
  EXPECT_THAT(log_, Not(HasSubstr("earlier attempt")));
  const std::vector<fs::path> kept = kept_;
  // Pruned, measured, 5 blocks quantized, 5 scored, all of them by gradients.
  ASSERT_EQ(kept.size(), 13u);
  EXPECT_TRUE(fs::exists(kept[4] / "checkpoint/outputs/prepared/weights/block-00002.safetensors"));
  EXPECT_FALSE(fs::exists(kept[4] / "checkpoint/pruned.safetensors")) << "it is in no set any more";
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(Run(spec, kept[i]), whole) << "from checkpoint " << i;
    EXPECT_THAT(log_, HasSubstr(i == 0 ? "goes on from the pruned model"
                                       : "goes on from the measured model"));
    if (i >= 2) {
      EXPECT_THAT(log_, HasSubstr(absl::StrCat("GPTQ goes on after ", std::min<size_t>(i - 1, 5),
                                               " of 5 blocks")));
    }
    if (i >= 7) {
      EXPECT_THAT(log_, HasSubstr(absl::StrCat("Scoring goes on after ", std::min<size_t>(i - 6, 5),
                                               " of 5 blocks")));
    }
    // What it leaves in turn is what the whole run would have left from there on.
    ASSERT_EQ(kept_.size(), kept.size() - 1 - i);
    if (i == 4) {
      EXPECT_TRUE(
          fs::exists(kept_[0] / "checkpoint/outputs/prepared/weights/block-00000.safetensors"));
      const fs::path again = kept_[1];
      EXPECT_EQ(Run(spec, again), whole) << "interrupted twice";
    }
  }
  // The next attempt may have been given less memory, after one that ran out of it.
  v1::CompressionSpec less = spec;
  less.mutable_limits()->set_device_memory_bytes(int64_t{1} << 30);
  Run(less, kept[3]);
  EXPECT_THAT(log_, HasSubstr("GPTQ goes on after 2 of 5 blocks"));
}

TEST_F(PrepareCheckpointTest, WhatIsDamagedOrOfOtherWorkIsPassedOver) {
  v1::CompressionSpec spec = Spec();
  const Outcome whole = Run(spec, folder_ / "nothing");
  const std::vector<fs::path> kept = kept_;
  const auto spoil = [&](size_t index, const std::string& path,
                         const std::function<void(const fs::path&)>& how) {
    const fs::path inputs = folder_ / absl::StrCat("spoilt-", runs_);
    fs::copy(kept[index], inputs, fs::copy_options::recursive);
    how(inputs / "checkpoint" / path);
    return inputs;
  };
  const auto cut = [](const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); };
  const auto remove = [](const fs::path& file) { fs::remove(file); };
  for (const auto& [path, how] :
       std::vector<std::pair<std::string, std::function<void(const fs::path&)>>>{
           {"measured.safetensors", cut},
           {"outputs/prepared/model.safetensors", cut},
           {"outputs/prepared/tokenizer.json", remove},
           {"outputs/report/tasks.pruned.jsonl", remove}}) {
    EXPECT_EQ(Run(spec, spoil(6, path, how)), whole) << path;
    EXPECT_THAT(log_, HasSubstr("Preparing starts from the beginning: ")) << path;
    EXPECT_THAT(log_, Not(HasSubstr("goes on"))) << path;
  }
  // A whole file of another shape.
  const auto other = [&](const fs::path& file) {
    fs::copy_file("data/models/stories260k/model.safetensors", file,
                  fs::copy_options::overwrite_existing);
  };
  EXPECT_EQ(Run(spec, spoil(6, "outputs/prepared/weights/block-00002.safetensors", other)), whole);
  EXPECT_THAT(log_, HasSubstr("passed over: block-00002.safetensors: must hold tensor"));
  EXPECT_THAT(log_, HasSubstr("GPTQ goes on after 2 of 5 blocks"));
  EXPECT_EQ(Run(spec, spoil(9, "sensitivities-3.safetensors", other)), whole);
  EXPECT_THAT(log_, HasSubstr("scored is passed over: "));

  spec.mutable_calibration()->set_seed(spec.calibration().seed() + 1);
  Run(spec, kept[6]);
  EXPECT_THAT(log_, HasSubstr("its spec, model or text is another one"));
  EXPECT_THAT(log_, Not(HasSubstr("goes on")));
}

TEST_F(PrepareCheckpointTest, TheFingerprintTellsModelsAndTextsApart) {
  const v1::CompressionSpec spec = Spec();
  const fs::path copy = folder_ / "model";
  fs::copy("data/models/stories260k", copy);
  const auto model = Checkpoint::Open(copy.string()).value();
  JobTexts texts;
  texts.selection = {{.ids = {1, 2, 3}}, {.ids = {4}}};
  const std::string fingerprint = PrepareFingerprint(spec, *model, texts, {});
  EXPECT_EQ(
      PrepareFingerprint(spec, *Checkpoint::Open("data/models/stories260k").value(), texts, {}),
      fingerprint);
  JobTexts other = texts;
  other.selection = {{.ids = {1, 2}}, {.ids = {3, 4}}};
  EXPECT_NE(PrepareFingerprint(spec, *model, other, {}), fingerprint);
  // Another training run of the same model.
  {
    const size_t half = fs::file_size(copy / "model.safetensors") / 2;
    std::fstream file(copy / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(half));
    file << std::string(half, '\1');
  }
  EXPECT_NE(PrepareFingerprint(spec, *Checkpoint::Open(copy.string()).value(), texts, {}),
            fingerprint);
}

}  // namespace
}  // namespace qpruner::engine
