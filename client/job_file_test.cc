#include "client/job_file.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/message_reader.h"
#include "proto/status_codec.h"

namespace qpruner {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<JobFile> Parse(absl::string_view content) {
  return ParseJobFile(content, "job.yaml", "/jobs");
}

constexpr char kEverything[] = R"(# A job.
display_name: Stories, a fifth pruned
labels:
  team: research
  run: 1.10          # Stays as it is written.
priority: -3
spec:
  model: {uri: "builtin://stories260k"}
  calibration:
    sample_count: 64
    seed: 7
  pruning:
    importance: taylor_mixed
    ratio: .2
    layout: Per_Layer
  quantization: {four_bit: nf4}
  search:
    candidate_bits: [4, 8, 16]
    granularity: FUSED_GROUP
    max_bytes: 300000
    max_trials: 40
  fine_tune:
    steps: 0
    learning_rate: 1e-3
  evaluation:
  export:
    dtype: float32
)";

TEST(JobFileTest, ReadsEveryKindOfField) {
  absl::StatusOr<JobFile> file = Parse(kEverything);
  ASSERT_TRUE(file.ok()) << file.status();
  const v1::CompressionJob& job = file->job;
  EXPECT_EQ(job.display_name(), "Stories, a fifth pruned");
  EXPECT_EQ(job.labels().at("team"), "research");
  EXPECT_EQ(job.labels().at("run"), "1.10");
  EXPECT_EQ(job.priority(), -3);
  EXPECT_EQ(job.spec().model().uri(), "builtin://stories260k");
  EXPECT_EQ(job.spec().calibration().sample_count(), 64);
  EXPECT_FALSE(job.spec().calibration().has_sequence_length());
  EXPECT_EQ(job.spec().pruning().importance(), v1::Pruning::TAYLOR_MIXED);
  EXPECT_EQ(job.spec().pruning().ratio(), 0.2);
  EXPECT_EQ(job.spec().pruning().layout(), v1::Pruning::PER_LAYER);
  EXPECT_THAT(job.spec().search().candidate_bits(), ElementsAre(4, 8, 16));
  EXPECT_EQ(job.spec().search().max_bytes(), 300000);
  EXPECT_TRUE(job.spec().fine_tune().has_steps());
  EXPECT_EQ(job.spec().fine_tune().steps(), 0);
  EXPECT_EQ(job.spec().fine_tune().learning_rate(), 0.001);
  EXPECT_EQ(job.spec().export_().dtype(), v1::Export::FLOAT32);
  EXPECT_EQ(file->lines.at("spec.pruning.ratio"), 14);
}

struct Refusal {
  const char* name;
  const char* content;
  const char* message;
};

class JobFileRefusals : public ::testing::TestWithParam<Refusal> {};

TEST_P(JobFileRefusals, NamesFileLineFieldAndRule) {
  absl::StatusOr<JobFile> file = Parse(GetParam().content);
  ASSERT_FALSE(file.ok()) << file->job.DebugString();
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Table, JobFileRefusals,
    ::testing::Values(
        Refusal{"Slip", "spec:\n  pruning:\n    ratoi: 0.2\n",
                "job.yaml:3: spec.pruning.ratoi: unknown field; did you mean \"ratio\"?"},
        Refusal{"Misplaced", "spec:\n  max_trials: 3\n",
                "job.yaml:2: spec.max_trials: unknown field; it belongs at spec.search.max_trials"},
        Refusal{"Unknown", "spec:\n  model:\n    wobble: 3\n",
                "job.yaml:3: spec.model.wobble: unknown field; known here: uri"},
        Refusal{"OutputOnly", "state: RUNNING\n", "job.yaml:1: state: is set by the server"},
        Refusal{"MergeKey", "a: &a {ratio: 1}\nspec: {pruning: {<<: *a}}\n",
                "spec.pruning.<<: unknown field"},
        Refusal{"Twice", "spec:\n  model: {uri: a}\n  model: {uri: b}\n",
                "job.yaml:3: spec.model: is given twice"},
        Refusal{"TwiceByJsonName", "display_name: a\ndisplayName: b\n",
                "job.yaml:2: display_name: is given twice"},
        Refusal{"LabelTwice", "labels: {a: b, a: c}\n", "labels.a: is given twice"},
        Refusal{"TextForNumber", "spec: {pruning: {ratio: \"0.2\"}}\n",
                "must be a number, is the text \"0.2\": write it without quotes"},
        Refusal{"TextForInteger", "priority: \"3\"\n",
                "must be a whole number, is the text \"3\": write it without quotes"},
        Refusal{"WordForNumber", "spec: {pruning: {ratio: half}}\n",
                "spec.pruning.ratio: must be a number, is \"half\""},
        Refusal{"Percent", "spec: {pruning: {ratio: 20%}}\n", "must be a number, is \"20%\""},
        Refusal{"NotFinite", "spec: {pruning: {ratio: .inf}}\n", "must be a number"},
        Refusal{"Overflows", "spec: {pruning: {ratio: 1e999}}\n", "must be a finite number"},
        Refusal{"Hexadecimal", "priority: 0x10\n", "must be a whole number, is \"0x10\""},
        Refusal{"Octal", "priority: 010\n", "must not begin with 0"},
        Refusal{"Fraction", "spec: {search: {max_bytes: 1.5}}\n",
                "must be a whole number, is \"1.5\""},
        Refusal{"Unit", "spec: {search: {max_bytes: 300 KB}}\n",
                "must be a whole number, is \"300 KB\""},
        Refusal{"TooLargeFor32", "priority: 3000000000\n",
                "must be a 32-bit whole number, is 3000000000"},
        Refusal{"TooLargeFor64", "spec: {search: {max_bytes: 9223372036854775808}}\n",
                "must be a 64-bit whole number"},
        Refusal{"ListForScalar", "priority: [1]\n", "priority: must be a number, is a list"},
        Refusal{"ScalarForList", "spec: {search: {candidate_bits: 4}}\n",
                "must be a list, such as [a, b]; is \"4\""},
        Refusal{"ListItem", "spec:\n  search:\n    candidate_bits:\n    - 4\n    - eight\n",
                "job.yaml:5: spec.search.candidate_bits[1]: must be a whole number, is \"eight\""},
        Refusal{"ScalarForMessage", "spec: {model: stories}\n",
                "spec.model: must be a mapping of fields, is \"stories\""},
        Refusal{"NoValue", "priority:\n", "priority: has no value; it must be a number"},
        Refusal{"ListDocument", "- a\n", "job.yaml:1: must be a mapping of fields, is a list"},
        Refusal{"Enum", "spec: {pruning: {importance: taylor_mix}}\n",
                "must be one of L1, L2, TAYLOR_FIRST, TAYLOR_SECOND, TAYLOR_MIXED, TAYLOR_VECTOR, "
                "RANDOM; is \"taylor_mix\"; did you mean TAYLOR_MIXED?"},
        Refusal{"EnumNumber", "spec: {pruning: {importance: 5}}\n", "must be one of L1"},
        Refusal{"EnumUnspecified", "spec: {pruning: {importance: IMPORTANCE_UNSPECIFIED}}\n",
                "must be one of L1"},
        Refusal{"BothBudgets", "spec:\n  search:\n    max_bytes: 1\n    max_average_bits: 5\n",
                "job.yaml:4: spec.search.max_average_bits: cannot be set together with max_bytes"},
        Refusal{"Empty", "", "job.yaml: it is empty"},
        Refusal{"TwoDocuments", "priority: 1\n---\npriority: 2\n", "more than one document"},
        // Here yaml-cpp finds empty documents without end.
        Refusal{"ACommaTooMany", "{\"priority\": 1},", "more than one document"},
        Refusal{"Syntax", "spec: {model: {uri: a}\npriority: 1\n", "job.yaml: line "},
        Refusal{"BadUtf8", "display_name: \"a\xff\"\n", "must be UTF-8 text"},
        Refusal{"Nul", "display_name: \"a\\0b\"\n", "must be UTF-8 text"},
        Refusal{"UnknownAlias", "spec: *nowhere\n", "job.yaml: line 1"}),
    [](const auto& info) { return info.param.name; });

TEST(JobFileTest, ReportsAllProblemsAtOnce) {
  absl::StatusOr<JobFile> file =
      Parse("priority: high\nspec:\n  prunning: {}\n  search: {max_bytes: lots}\n");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().message(),
            "job.yaml:1: priority: must be a whole number, is \"high\"\n"
            "job.yaml:3: spec.prunning: unknown field; did you mean \"pruning\"?\n"
            "job.yaml:4: spec.search.max_bytes: must be a whole number, is \"lots\"");
}

TEST(JobFileTest, BoundsSizeDepthAndAliases) {
  EXPECT_THAT(std::string(Parse(std::string(kMaxMessageFileBytes + 1, '#')).status().message()),
              HasSubstr("too large"));
  // Each level has twice the one before: 2^20 labels if they were expanded.
  std::string bomb = "labels:\n  a0: &a0 [x, x]\n";
  for (int i = 1; i < 20; ++i) {
    absl::StrAppend(&bomb, "  a", i, ": &a", i, " [*a", i - 1, ", *a", i - 1, "]\n");
  }
  EXPECT_FALSE(Parse(bomb).ok());
  // The same through lists that are read.
  std::string many = "spec:\n  search:\n    candidate_bits: [";
  for (int i = 0; i < kMaxMessageNodes + 10; ++i) absl::StrAppend(&many, "4,");
  many += "8]\n";
  EXPECT_THAT(std::string(Parse(many).status().message()), HasSubstr("there is too much here"));
  // Nesting that would overflow a recursive parser's stack.
  EXPECT_FALSE(Parse(absl::StrCat("spec: ", std::string(100000, '['))).ok());
  EXPECT_FALSE(Parse(std::string(100000, '{')).ok());
  // A mapping that holds itself.
  EXPECT_FALSE(Parse("spec: &s\n  model: *s\n").ok());
}

TEST(JobFileTest, AliasesWorkWhereTheyAreSmall) {
  absl::StatusOr<JobFile> file = Parse(
      "spec:\n  calibration: {dataset: &text {uri: 'file:///t.txt'}}\n"
      "  evaluation: {dataset: *text}\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->job.spec().evaluation().dataset().uri(), "file:///t.txt");
}

TEST(JobFileTest, ReadsWhatProtobufPrintsAsJson) {
  absl::StatusOr<JobFile> file = Parse(kEverything);
  ASSERT_TRUE(file.ok()) << file.status();
  file->job.set_display_name("quote \" backslash \\ <b> \xF0\x9F\x98\x80 tab\t end");
  for (const bool proto_names : {false, true}) {
    for (const bool whitespace : {false, true}) {
      google::protobuf::util::JsonPrintOptions options;
      options.preserve_proto_field_names = proto_names;
      options.add_whitespace = whitespace;
      std::string json;
      ASSERT_TRUE(google::protobuf::util::MessageToJsonString(file->job, &json, options).ok());
      absl::StatusOr<JobFile> again = ParseJobFile(json, "job.json", ".");
      ASSERT_TRUE(again.ok()) << again.status() << "\n" << json;
      EXPECT_TRUE(MessageDifferencer::Equals(again->job, file->job)) << json;
    }
  }
}

TEST(JobFileTest, ReadsJsonWithTabsAndEscapedPairs) {
  absl::StatusOr<JobFile> file = ParseJobFile(
      "{\n\t\"displayName\":\"\\ud83d\\ude00 "
      "\\\\ud83d\",\n\t\"spec\":{\"search\":{\"maxBytes\":\"12\"}}\n}\n",
      "job.json", ".");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->job.display_name(), "\xF0\x9F\x98\x80 \\ud83d");
  EXPECT_EQ(file->job.spec().search().max_bytes(), 12);
}

TEST(JobFileTest, WritesFilesThatReadBackTheSame) {
  absl::StatusOr<JobFile> file = Parse(kEverything);
  ASSERT_TRUE(file.ok()) << file.status();
  file->job.set_display_name("yes: \"no\" # \xC3\xA9\n");
  (*file->job.mutable_labels())["on"] = "true";
  file->job.set_name("projects/default/jobs/a");  // Output only: not written.
  const std::string yaml = FormatJobFile(file->job);
  absl::StatusOr<JobFile> again = Parse(yaml);
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << yaml;
  file->job.clear_name();
  EXPECT_TRUE(MessageDifferencer::Equals(again->job, file->job)) << yaml;
}

TEST(JobFileTest, PathsBecomeFileUris) {
  EXPECT_EQ(LocalUri("builtin://stories260k", "/jobs"), "builtin://stories260k");
  EXPECT_EQ(LocalUri("../models/a/", "/jobs/b"), "file:///jobs/models/a");
  EXPECT_EQ(LocalUri("/models/a", "/jobs"), "file:///models/a");
  absl::StatusOr<JobFile> file = Parse(
      "spec: {model: {uri: ./m}, fine_tune: {dataset: {uri: t.txt}},"
      " evaluation: {tasks: [{name: piqa, uri: eval/piqa.jsonl}]}}\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->job.spec().model().uri(), "file:///jobs/m");
  EXPECT_EQ(file->job.spec().fine_tune().dataset().uri(), "file:///jobs/t.txt");
  EXPECT_EQ(file->job.spec().evaluation().tasks(0).uri(), "file:///jobs/eval/piqa.jsonl");
}

TEST(JobFileTest, OverridesReplace) {
  absl::StatusOr<JobFile> file = Parse(kEverything);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(ApplyOverride("spec.pruning.ratio=0.5", *file).ok());
  EXPECT_TRUE(ApplyOverride("spec.search.candidate_bits=[8]", *file).ok());
  EXPECT_TRUE(ApplyOverride("spec.search.max_average_bits=5.5", *file).ok());
  EXPECT_TRUE(ApplyOverride("labels.tier=a=b", *file).ok());
  EXPECT_TRUE(ApplyOverride("spec.fine_tune.init=zero", *file).ok());
  EXPECT_EQ(file->job.spec().pruning().ratio(), 0.5);
  EXPECT_THAT(file->job.spec().search().candidate_bits(), ElementsAre(8));
  EXPECT_EQ(file->job.spec().search().budget_case(), v1::Search::kMaxAverageBits);
  EXPECT_EQ(file->job.labels().at("tier"), "a=b");
  EXPECT_EQ(file->job.labels().at("team"), "research");
  EXPECT_EQ(file->job.spec().fine_tune().init(), v1::FineTune::ZERO);
}

TEST(JobFileTest, BadOverridesAreNamed) {
  JobFile file;
  const auto message = [&](absl::string_view assignment) {
    return std::string(ApplyOverride(assignment, file).message());
  };
  EXPECT_THAT(message("spec.pruning.ratio"), HasSubstr("must be FIELD=VALUE"));
  EXPECT_EQ(
      message("spec.pruning.ratoi=1"),
      "--set spec.pruning.ratoi=1: spec.pruning.ratoi: unknown field; did you mean \"ratio\"?");
  EXPECT_THAT(message("spec.pruning.ratio=x"), HasSubstr("must be a number, is \"x\""));
  EXPECT_THAT(message("spec.pruning.ratio="), HasSubstr("has no value"));
  EXPECT_THAT(message("spec.pruning.ratio.x=1"), HasSubstr("has no field \"x\" in it"));
  EXPECT_THAT(message("name=x"), HasSubstr("is set by the server"));
  EXPECT_THAT(message("spec.search.candidate_bits=[4"), HasSubstr("line 1"));
}

TEST(JobFileTest, ServersComplaintsGetLines) {
  absl::StatusOr<JobFile> file = Parse(kEverything);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(
      DescribeJobError(BadRequestError({{"job.spec.pruning.ratio", "must be in [0, 1), is 1.5"},
                                        {"spec.search.candidate_bits[1]", "3 is not available"},
                                        {"job.spec.limits.max_attempts", "must be at least 1"}}),
                       *file),
      ElementsAre("job.yaml:14: spec.pruning.ratio: must be in [0, 1), is 1.5",
                  "job.yaml:18: spec.search.candidate_bits[1]: 3 is not available",
                  "job.yaml:7: spec.limits.max_attempts: must be at least 1"));
}

TEST(JobFileTest, ExamplesAreGood) {
  const char* source = getenv("QPRUNER_SOURCE_DIR");
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(
           absl::StrCat(source == nullptr ? "." : source, "/examples"))) {
    if (entry.path().extension() != ".yaml") continue;
    ++count;
    absl::StatusOr<JobFile> file = ReadJobFile(entry.path().string());
    EXPECT_TRUE(file.ok()) << file.status();
  }
  EXPECT_GE(count, 2);
}

}  // namespace
}  // namespace qpruner
