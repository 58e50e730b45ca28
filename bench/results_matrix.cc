// Measures a model after every way of making it smaller: pruned shares x precisions x recoveries,
// and each importance measure. One JSON line a cell is appended to --output as soon as it is
// measured, and cells that are in it already are passed over: a run that was stopped goes on.
// bench/results.py calls it and draws docs/results.md from the lines.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/anonymous_peak.h"
#include "search/sensitivity_plan.h"
#include "search/space.h"
#include "worker/engine/evaluate/choice_file.h"
#include "worker/engine/evaluate/choice_task.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/finetune/adapter_start.h"
#include "worker/engine/finetune/distillation.h"
#include "worker/engine/finetune/merged_source.h"
#include "worker/engine/finetune/trainer.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/cast_source.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/memory_source.h"
#include "worker/engine/prune/importance.h"
#include "worker/engine/prune/pruned_source.h"
#include "worker/engine/prune/pruning_plan.h"
#include "worker/engine/quantize/assignment.h"
#include "worker/engine/quantize/quantized_source.h"
#include "worker/engine/score/search_groups.h"
#include "worker/engine/score/sensitivity.h"
#include "worker/engine/texts/dataset.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kSeed = 42;
constexpr int64_t kTaskLength = 2048;  // lm-eval's default.

struct Arguments {
  std::string model;
  std::string text;
  std::string other_text;
  std::vector<std::string> tasks;  // NAME=FILE
  std::string output;
  std::vector<double> ratios = {0, 0.2, 1.0 / 3};
  std::vector<std::string> precisions = {"bf16", "8", "mixed", "4"};
  std::vector<std::string> recoveries = {"none", "lora", "loftq", "distillation"};
  double mixed_bits = 6.5;
  int64_t task_items = 40;
  int64_t steps = 200;
  int64_t batch = 8;
  int64_t train_length = 256;
  int64_t length = 512;
  int64_t tokens = 8192;
  int64_t samples = 16;
  int64_t sensitivity_samples = 4;
  double learning_rate = 1e-3;
  int64_t rank = 8;
  int threads = 0;
  bool float32 = false;
  bool importances = true;
};

// A text with the original model's states over it.
struct Probe {
  std::vector<TokenBatch> batches;
  ReferenceStates original;
};

double CpuSeconds() {
  rusage use{};
  getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

// Has the kernel count VmHWM, the most bytes resident, from here on.
void ResetPeak() { std::ofstream("/proc/self/clear_refs") << "5"; }

absl::StatusOr<std::unique_ptr<Dataset>> OpenText(const std::string& path,
                                                  const Tokenizer& tokenizer, int64_t length) {
  TextSource source{.path = path, .window_length = length};
  absl::StatusOr<std::unique_ptr<Dataset>> documents = Dataset::Open(source, tokenizer);
  if (documents.ok()) return documents;
  source.document_separator.clear();  // One text without documents.
  return Dataset::Open(source, tokenizer);
}

// The cells measured already.
std::set<std::string> MeasuredCells(const std::string& path) {
  std::set<std::string> cells;
  std::ifstream lines(path);
  for (std::string line; std::getline(lines, line);) {
    const ordered_json row = ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.contains("cell")) cells.insert(row["cell"].get<std::string>());
  }
  return cells;
}

class Matrix {
 public:
  explicit Matrix(const Arguments& arguments)
      : arguments_(arguments),
        dtype_(arguments.float32 ? at::kFloat : at::kBFloat16),
        measured_(MeasuredCells(arguments.output)) {}

  absl::Status Open() {
    ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(arguments_.model));
    const auto mapped = MakeCheckpointSource(checkpoint, at::kCPU, at::kFloat);
    original_ = std::make_unique<MemoryWeightSource>(LoadIntoMemory(*mapped));
    const ModelConfig& config = original_->config();
    arguments_.length = std::min(arguments_.length, config.max_position_embeddings);
    arguments_.train_length = std::min(arguments_.train_length, config.max_position_embeddings);
    ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Open(arguments_.model, config.vocab_size));
    ASSIGN_OR_RETURN(const auto text, OpenText(arguments_.text, *tokenizer, arguments_.length));
    ASSIGN_OR_RETURN(const auto other,
                     OpenText(arguments_.other_text, *tokenizer, arguments_.length));
    ASSIGN_OR_RETURN(selection_, text->Documents(Share::kSelection, arguments_.length,
                                                 std::max<int64_t>(arguments_.tokens / 4, 512)));
    ASSIGN_OR_RETURN(test_, MakeProbe(*text));
    ASSIGN_OR_RETURN(other_, MakeProbe(*other));
    ASSIGN_OR_RETURN(
        std::vector<TokenIds> documents,
        text->Documents(Share::kFineTune, 1 << 20,
                        arguments_.steps * arguments_.batch * arguments_.train_length));
    std::vector<TrainingSequence> sequences;
    for (TokenIds& ids : documents) sequences.push_back({.ids = std::move(ids)});
    training_ = PackDocuments(sequences, arguments_.train_length, kSeed);
    ASSIGN_OR_RETURN(calibration_,
                     text->Samples(Share::kCalibration, arguments_.samples, 128, kSeed));
    for (const std::string& task : arguments_.tasks) {
      const auto equals = task.find('=');
      if (equals == std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--task must be NAME=FILE, is ", task));
      }
      ASSIGN_OR_RETURN(std::vector<ChoiceItem> items,
                       ReadChoiceFile(task.substr(equals + 1), {.limit = arguments_.task_items}));
      ASSIGN_OR_RETURN(ChoiceTask made, MakeChoiceTask(task.substr(0, equals), std::move(items),
                                                       *tokenizer, kTaskLength));
      tasks_.push_back(std::move(made));
    }
    return absl::OkStatus();
  }

  absl::Status Run() {
    RETURN_IF_ERROR(Cell("original", {{"ratio", 0}, {"precision", "original"}}, [&](auto measure) {
      return measure(*original_, Bytes(original_->config(), Format::Bfloat16()), 0);
    }));
    for (const double ratio : arguments_.ratios) RETURN_IF_ERROR(RunRatio(ratio));
    if (arguments_.importances) RETURN_IF_ERROR(RunImportances());
    return absl::OkStatus();
  }

 private:
  using Measure = std::function<absl::Status(WeightSource&, const ModelBytes&, int64_t adapter)>;

  absl::StatusOr<Probe> MakeProbe(Dataset& dataset) {
    ASSIGN_OR_RETURN(const std::vector<TokenIds> sequences,
                     dataset.Documents(Share::kTest, arguments_.length, arguments_.tokens));
    Probe probe{.batches = MakeBatches(sequences)};
    CastSource source(*original_, dtype_);
    probe.original = {ForwardHidden(source, BatchIds(probe.batches)), source.Head()};
    return probe;
  }

  static ModelBytes Bytes(const ModelConfig& config, const Format& format) {
    return CountBytes(config, UniformAssignment(config, format));
  }

  // Runs `work`, which must call its argument once, and appends what was measured.
  absl::Status Cell(const std::string& name, ordered_json row,
                    const std::function<absl::Status(const Measure&)>& work) {
    if (measured_.contains(name)) return absl::OkStatus();
    ResetPeak();
    const auto start = std::chrono::steady_clock::now();
    const double cpu = CpuSeconds();
    double made_cpu = 0;
    RETURN_IF_ERROR(work([&](WeightSource& model, const ModelBytes& bytes, int64_t adapter) {
      made_cpu = CpuSeconds() - cpu;
      row["bytes"] = bytes.total();
      row["average_bits"] = bytes.average_bits();
      row["parameters"] = bytes.parameter_count;
      row["adapter_bytes"] = adapter;
      CastSource source(model, dtype_);
      Add("", EvaluateModel(source, test_.batches, &test_.original), row);
      Add("other_", EvaluateModel(source, other_.batches, &other_.original), row);
      row["tasks"] = ordered_json::object();
      for (const ChoiceTask& task : tasks_) {
        const ChoiceScores scores = MeasureChoiceTask(source, task);
        row["tasks"][task.name] = {{"items", scores.items.size()},
                                   {"acc", scores.acc.mean},
                                   {"acc_stderr", scores.acc.standard_error},
                                   {"acc_norm", scores.acc_norm.mean},
                                   {"acc_norm_stderr", scores.acc_norm.standard_error}};
      }
      return absl::OkStatus();
    }));
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    row["make_cpu_seconds"] = made_cpu;
    row["cpu_seconds"] = CpuSeconds() - cpu;
    row["wall_seconds"] = wall.count();
    row["peak_bytes"] = StatusBytes("VmHWM");
    row["threads"] = at::get_num_threads();
    row["cell"] = name;
    std::ofstream(arguments_.output, std::ios::app) << row.dump() << "\n" << std::flush;
    std::cout << name << ": perplexity " << row["perplexity"] << ", KL " << row["kl"] << ", "
              << static_cast<int64_t>(wall.count()) << " s" << std::endl;
    return absl::OkStatus();
  }

  static void Add(const std::string& prefix, const TokenMetrics& metrics, ordered_json& row) {
    row[prefix + "perplexity"] = metrics.perplexity();
    row[prefix + "kl"] = metrics.mean_kl();
    row[prefix + "top1"] = metrics.top1_agreement();
  }

  absl::StatusOr<std::unique_ptr<WeightSource>> Prune(double ratio, ImportanceMethod method) {
    if (ratio == 0)
      return std::make_unique<PrunedSource>(*original_, FullPlan(original_->config()));
    const PruningOptions pruning{.ratio = ratio};
    ASSIGN_OR_RETURN(
        PruningPlan plan,
        MakePruningPlan(original_->config(),
                        ScoreGroups(*original_, MakeBatches(calibration_), {.method = method}),
                        pruning));
    PrunedSource pruned(*original_, std::move(plan));
    return std::make_unique<MemoryWeightSource>(LoadIntoMemory(pruned));
  }

  // 4 or 8 bits for each fused group: the smallest sum of measured sensitivities within
  // --mixed-bits (search/sensitivity_plan.h).
  FormatAssignment Mixed(WeightSource& model) {
    const ModelConfig& config = model.config();
    const std::vector<LinearGroup> groups =
        MakeSearchGroups(config.num_blocks(), SearchGranularity::kFusedGroup);
    const std::vector<Format> formats = {Format::NormalFloat(4), Format::Integer8Row()};
    const std::vector<TokenIds> samples(
        calibration_.begin(),
        calibration_.begin() + std::min<int64_t>(arguments_.sensitivity_samples,
                                                 static_cast<int64_t>(calibration_.size())));
    const auto sensitivities = MeasureSensitivity(model, MakeBatches(samples), groups, formats);
    search::SearchSpace space{.fixed_bytes = FixedBytes(config)};
    for (size_t g = 0; g < groups.size(); ++g) {
      search::Group group{.name = groups[g].name,
                          .parameter_count = ParameterCount(config, groups[g])};
      for (size_t f = 0; f < formats.size(); ++f) {
        group.choices.push_back({.bits = formats[f].bits,
                                 .bytes = PackedBytes(config, groups[g], formats[f]),
                                 .sensitivity = sensitivities[g][f]});
      }
      space.groups.push_back(std::move(group));
    }
    const int64_t budget = search::BudgetForAverageBits(space, arguments_.mixed_bits);
    const search::Assignment plan = search::SensitivityPlanner(space, budget).Plan(budget);
    FormatAssignment assignment;
    for (size_t g = 0; g < groups.size(); ++g) {
      for (const LinearKind kind : groups[g].linears) {
        assignment[LinearName(groups[g].block, kind)] = formats[static_cast<size_t>(plan[g])];
      }
    }
    return assignment;
  }

  absl::Status RunRatio(double ratio) {
    std::unique_ptr<WeightSource> pruned;  // Made when the first cell needs it.
    for (const std::string& precision : arguments_.precisions) {
      std::optional<FormatAssignment> assignment;
      for (const std::string& recovery : arguments_.recoveries) {
        const std::string name =
            absl::StrCat(static_cast<int>(100 * ratio + 0.5), "%/", precision, "/", recovery);
        if (measured_.contains(name)) continue;
        // Nothing is lost by quantization that LoftQ could start from: it is LoRA.
        if (precision == "bf16" && recovery == "loftq") continue;
        if (pruned == nullptr) {
          ASSIGN_OR_RETURN(pruned, Prune(ratio, ImportanceMethod::kTaylorMixed));
        }
        if (!assignment) {
          const ModelConfig& config = pruned->config();
          assignment = precision == "mixed" ? Mixed(*pruned)
                       : precision == "4"   ? UniformAssignment(config, Format::NormalFloat(4))
                       : precision == "8"   ? UniformAssignment(config, Format::Integer8Row())
                                            : UniformAssignment(config, Format::Bfloat16());
        }
        RETURN_IF_ERROR(Cell(name,
                             {{"ratio", ratio}, {"precision", precision}, {"recovery", recovery}},
                             [&](const Measure& measure) {
                               return Recover(*pruned, *assignment, recovery, measure);
                             }));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Recover(WeightSource& model, const FormatAssignment& assignment,
                       const std::string& recovery, const Measure& measure) {
    const ModelBytes bytes = CountBytes(model.config(), assignment);
    ASSIGN_OR_RETURN(const auto base, QuantizedSource::Create(model, assignment));
    if (recovery == "none") return measure(*base, bytes, 0);
    const AdapterInit init = recovery == "lora" ? AdapterInit::kZero : AdapterInit::kLoftq;
    AdapterStart start = StartAdapter(
        model, *base, init, 1,
        {.rank = arguments_.rank, .alpha = 2.0 * static_cast<double>(arguments_.rank)});
    TrainingState state = StartTraining(std::move(start.adapter));
    std::optional<DistillationObjective> distillation;
    if (recovery == "distillation") {
      distillation.emplace(*original_, model.config().vocab_size, DistillationOptions{.weight = 1});
    }
    TrainerOptions options{.batch_size = arguments_.batch,
                           .micro_batch_size = arguments_.batch,
                           .sequence_length = arguments_.train_length,
                           .learning_rate = {.peak = arguments_.learning_rate,
                                             .warmup_steps = arguments_.steps / 10,
                                             .steps = arguments_.steps},
                           .evaluate_every = std::max<int64_t>(arguments_.steps / 4, 1),
                           .dtype = dtype_};
    RETURN_IF_ERROR(Train(*base, training_, MakeBatches(selection_), options, state, {},
                          distillation ? &*distillation : nullptr));
    MergedSource merged(*base, state.best);
    return measure(merged, bytes, 4 * state.best.parameter_count());
  }

  absl::Status RunImportances() {
    const std::map<std::string, ImportanceMethod> methods = {
        {"L1", ImportanceMethod::kL1},
        {"L2", ImportanceMethod::kL2},
        {"Taylor, first order", ImportanceMethod::kTaylorFirst},
        {"Taylor, second order", ImportanceMethod::kTaylorSecond},
        {"Taylor, mixed", ImportanceMethod::kTaylorMixed},
        {"Taylor, vector", ImportanceMethod::kTaylorVector},
        {"random", ImportanceMethod::kRandom}};
    for (const double ratio : arguments_.ratios) {
      if (ratio == 0) continue;
      for (const auto& [label, method] : methods) {
        const std::string name =
            absl::StrCat("importance/", static_cast<int>(100 * ratio + 0.5), "%/", label);
        const std::function<absl::Status(const Measure&)> work =
            [&, method = method](const Measure& measure) -> absl::Status {
          ASSIGN_OR_RETURN(const auto pruned, Prune(ratio, method));
          return measure(*pruned, Bytes(pruned->config(), Format::Bfloat16()), 0);
        };
        RETURN_IF_ERROR(Cell(name, {{"ratio", ratio}, {"importance", label}}, work));
      }
    }
    return absl::OkStatus();
  }

  Arguments arguments_;
  const at::ScalarType dtype_;
  const std::set<std::string> measured_;
  std::unique_ptr<WeightSource> original_;
  std::vector<TokenIds> selection_, calibration_;
  Probe test_, other_;
  std::vector<TrainingSequence> training_;
  std::vector<ChoiceTask> tasks_;
};

int Main(int argc, char** argv) {
  Arguments a;
  CLI::App app("Measures a model pruned, quantized and recovered in every combination.");
  app.add_option("model", a.model, "Folder of the model")->required();
  app.add_option("--text", a.text, "Text to calibrate, train and test on")->required();
  app.add_option("--other-text", a.other_text, "Text of another domain")->required();
  app.add_option("--task", a.tasks, "NAME=FILE of multiple-choice items");
  app.add_option("--output", a.output, "JSON lines, appended to")->required();
  app.add_option("--ratio", a.ratios, "Pruned shares")->capture_default_str();
  app.add_option("--precision", a.precisions, "bf16, 8, mixed, 4")
      ->check(CLI::IsMember({"bf16", "8", "mixed", "4"}));
  app.add_option("--recovery", a.recoveries, "none, lora, loftq, distillation")
      ->check(CLI::IsMember({"none", "lora", "loftq", "distillation"}));
  app.add_option("--mixed-bits", a.mixed_bits, "Stored bits a weight")->capture_default_str();
  app.add_option("--task-items", a.task_items, "The first of each task")->capture_default_str();
  app.add_option("--steps", a.steps, "Of fine-tuning")->capture_default_str();
  app.add_option("--batch", a.batch, "Sequences a step")->capture_default_str();
  app.add_option("--train-length", a.train_length, "Tokens a sequence")->capture_default_str();
  app.add_option("--length", a.length, "Tokens a measured window")->capture_default_str();
  app.add_option("--tokens", a.tokens, "Of each measured text")->capture_default_str();
  app.add_option("--samples", a.samples, "For importance, 128 tokens")->capture_default_str();
  app.add_option("--sensitivity-samples", a.sensitivity_samples, "")->capture_default_str();
  app.add_option("--learning-rate", a.learning_rate, "Peak")->capture_default_str();
  app.add_option("--rank", a.rank, "Of adapters")->capture_default_str();
  app.add_option("--threads", a.threads, "0: LibTorch's default");
  app.add_flag("--float32", a.float32, "Compute in float32 instead of bfloat16");
  app.add_flag("!--no-importances", a.importances, "Leave out the comparison of importances");
  CLI11_PARSE(app, argc, argv);
  if (a.threads > 0) at::set_num_threads(a.threads);
  Matrix matrix(a);
  absl::Status status = matrix.Open();
  if (status.ok()) status = matrix.Run();
  if (!status.ok()) std::cerr << status.message() << "\n";
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
