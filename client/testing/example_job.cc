#include "client/testing/example_job.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/resource_name.h"

namespace qpruner {
namespace {

constexpr int64_t kStart = 1'700'000'000;
constexpr int64_t kBudget = 240'000;

v1::Trial MakeTrial(const JobName& name, int index, const char* origin, int64_t bytes, double kl) {
  v1::Trial trial;
  trial.set_name(name.TrialName(index));
  trial.set_index(index);
  trial.set_state(v1::Trial::SUCCEEDED);
  trial.set_origin(origin);
  trial.set_worker("local-1");
  trial.set_attempt_count(1);
  const double bits = 4.5 + (static_cast<double>(bytes) - 170'000) / 22'000;
  const char* const kinds[] = {"attn_qkv", "attn_o", "mlp_gate_up", "mlp_down"};
  for (int block = 0; block < 5; ++block) {
    for (int kind = 0; kind < 4; ++kind) {
      v1::GroupPrecision& precision = *trial.add_precisions();
      precision.set_group(absl::StrCat("model.layers.", block, ".", kinds[kind]));
      // Any fixed mixture whose share of wide groups grows with the bytes.
      const int rank = (block * 7 + kind * 5) % 20;
      precision.set_bits(rank < (bits - 4.5) * 2 ? (rank % 5 == 0 && bits > 6 ? 16 : 8) : 4);
    }
  }
  v1::ModelMetrics& metrics = *trial.mutable_metrics();
  metrics.set_weight_bytes(bytes);
  metrics.set_average_bits(bits);
  metrics.set_parameter_count(230'000);
  metrics.set_perplexity(4.9 * std::exp(kl * 0.9));
  metrics.set_kl_divergence(kl);
  metrics.set_token_count(8192);
  trial.mutable_start_time()->set_seconds(kStart + 10 + index * 2);
  trial.mutable_end_time()->set_seconds(kStart + 12 + index * 2);
  return trial;
}

v1::ParetoFront FrontOf(const std::vector<v1::Trial>& trials, int chosen) {
  std::vector<const v1::Trial*> sorted;
  for (const v1::Trial& trial : trials) {
    if (trial.state() == v1::Trial::SUCCEEDED) sorted.push_back(&trial);
  }
  std::sort(sorted.begin(), sorted.end(), [](const v1::Trial* a, const v1::Trial* b) {
    return a->metrics().weight_bytes() < b->metrics().weight_bytes();
  });
  v1::ParetoFront front;
  front.set_quality_metric(v1::Search::KL_DIVERGENCE);
  double best = std::numeric_limits<double>::infinity();
  for (const v1::Trial* trial : sorted) {
    if (trial->metrics().kl_divergence() >= best) continue;
    best = trial->metrics().kl_divergence();
    v1::ParetoPoint& point = *front.add_points();
    point.set_trial(trial->name());
    point.set_weight_bytes(trial->metrics().weight_bytes());
    point.set_average_bits(trial->metrics().average_bits());
    point.set_quality(best);
    point.set_within_budget(trial->metrics().weight_bytes() <= kBudget);
    point.set_chosen(trial->index() == chosen);
    point.set_origin(trial->origin());
  }
  return front;
}

void AddRow(v1::JobReport& report, const char* label, int64_t bytes, double bits, double perplexity,
            double kl) {
  v1::JobReport::Row& row = *report.add_rows();
  row.set_label(label);
  row.mutable_metrics()->set_weight_bytes(bytes);
  row.mutable_metrics()->set_average_bits(bits);
  row.mutable_metrics()->set_perplexity(perplexity);
  row.mutable_metrics()->set_kl_divergence(kl);
  row.mutable_metrics()->set_token_count(16384);
  row.mutable_metrics()->set_parameter_count(bytes > 500'000 ? 260'032 : 230'400);
}

// Scores that fall with the divergence, of a task with continuations and of one with contexts.
void AddTaskScores(v1::JobReport::Row& row) {
  const double kl = row.metrics().kl_divergence();
  for (const bool partial : {false, true}) {
    v1::TaskScore& task = *row.mutable_metrics()->add_tasks();
    task.set_name(partial ? "winogrande" : "piqa");
    task.set_item_count(partial ? 1267 : 1838);
    task.mutable_acc()->set_mean((partial ? 0.531 : 0.642) - 0.2 * kl);
    task.mutable_acc()->set_standard_error(partial ? 0.014 : 0.0112);
    if (partial) continue;
    task.mutable_acc_norm()->set_mean(0.651 - 0.2 * kl);
    task.mutable_acc_norm()->set_standard_error(0.0111);
  }
}

}  // namespace

ExampleJob MakeExampleJob() {
  const JobName name{"default", "example"};
  ExampleJob example;
  struct Proposal {
    const char* origin;
    int64_t bytes;
    double kl;
  };
  const Proposal proposals[] = {
      {"uniform-4", 170'112, 0.2410},      {"uniform-8", 282'240, 0.00291},
      {"uniform-16", 460'800, 0.0000021},  {"sensitivity-lp", 205'440, 0.0712},
      {"sensitivity-lp", 251'904, 0.0180}, {"mutual-information", 214'016, 0.1620},
      {"bayesian", 190'464, 0.1041},       {"bayesian", 224'256, 0.0355},
      {"bayesian", 196'608, 0.1390},       {"bayesian", 238'592, 0.0229},
      {"bayesian", 268'288, 0.00806},      {"bayesian", 231'424, 0.0513},
      {"bayesian", 247'808, 0.0412},       {"bayesian", 178'176, 0.1702},
  };
  constexpr int kChosen = 10;

  const auto add_event = [&example]() -> v1::JobEvent& {
    v1::JobEvent& event = example.events.emplace_back();
    event.set_sequence(static_cast<int64_t>(example.events.size()));
    event.mutable_time()->set_seconds(kStart + event.sequence() - 1);
    return event;
  };
  const auto add_state = [&](v1::CompressionJob::State state, v1::CompressionJob::Stage stage) {
    v1::JobEvent& event = add_event();
    event.mutable_state_changed()->set_state(state);
    event.mutable_state_changed()->set_stage(stage);
  };
  const auto add_progress = [&](double fraction, int done, const char* message) {
    v1::Progress& progress = *add_event().mutable_progress();
    progress.set_fraction(fraction);
    progress.set_completed_trial_count(done);
    progress.set_trial_count(static_cast<int>(std::size(proposals)));
    progress.set_message(message);
  };

  add_state(v1::CompressionJob::PENDING, v1::CompressionJob::STAGE_UNSPECIFIED);
  add_state(v1::CompressionJob::RUNNING, v1::CompressionJob::PREPARE);
  add_progress(0.05, 0, "Scoring layers: block 2 of 5");
  add_progress(0.2, 0, "Measuring the pruned model");
  v1::JobEvent::LogLine& log = *add_event().mutable_log();
  log.set_severity(v1::JobEvent::LogLine::WARNING);
  log.set_text("Mutual information does not separate from its shuffled control");
  add_state(v1::CompressionJob::RUNNING, v1::CompressionJob::SEARCH);
  int index = 0;
  for (const Proposal& proposal : proposals) {
    v1::Trial trial = MakeTrial(name, ++index, proposal.origin, proposal.bytes, proposal.kl);
    v1::Trial running = trial;
    running.set_state(v1::Trial::RUNNING);
    running.clear_metrics();
    *add_event().mutable_trial_updated() = running;
    *add_event().mutable_trial_updated() = trial;
    example.trials.push_back(std::move(trial));
    *add_event().mutable_pareto_changed() = FrontOf(example.trials, 0);
    add_progress(0.2 + 0.5 * index / std::size(proposals), index, "Running trials");
  }
  add_state(v1::CompressionJob::RUNNING, v1::CompressionJob::FINALIZE);
  example.front = FrontOf(example.trials, kChosen);
  *add_event().mutable_pareto_changed() = example.front;
  add_progress(0.85, index, "Fine-tuning: step 120 of 200");
  v1::Artifact& artifact = *add_event().mutable_artifact_added();
  artifact.set_name(name.ArtifactName("model/config.json"));
  artifact.set_size_bytes(2);
  artifact.set_sha256("44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
  add_progress(1.0, index, "");
  add_state(v1::CompressionJob::SUCCEEDED, v1::CompressionJob::STAGE_UNSPECIFIED);

  v1::CompressionJob& job = example.job;
  job.set_name(name.ToString());
  job.set_display_name("An example");
  job.mutable_spec()->mutable_model()->set_uri("builtin://stories260k");
  job.mutable_spec()->mutable_search()->set_max_bytes(kBudget);
  job.set_state(v1::CompressionJob::SUCCEEDED);
  job.mutable_progress()->set_fraction(1.0);
  job.mutable_progress()->set_completed_trial_count(index);
  job.mutable_progress()->set_trial_count(index);
  job.mutable_create_time()->set_seconds(kStart);
  job.mutable_start_time()->set_seconds(kStart + 1);
  job.mutable_end_time()->set_seconds(kStart + 73);
  job.set_last_event_sequence(example.events.back().sequence());
  v1::JobReport& report = *job.mutable_report();
  AddRow(report, "original", 520'064, 16, 4.0862, 0);
  AddRow(report, "pruned", 460'800, 16, 4.8731, 0.18432);
  AddRow(report, "uniform-4", 170'112, 4.5, 6.0115, 0.42719);
  AddRow(report, "uniform-8", 282'240, 8.22, 4.8811, 0.18703);
  AddRow(report, "chosen", 238'592, 6.73, 4.9604, 0.20611);
  AddRow(report, "fine-tuned", 238'592, 6.73, 4.3127, 0.08125);
  for (v1::JobReport::Row& row : *report.mutable_rows()) {
    if (row.label().rfind("uniform-", 0) != 0) AddTaskScores(row);
  }
  for (v1::JobReport::Row& row : *report.mutable_rows()) {
    // The last uniform one took over what an earlier trial had computed.
    if (row.label() == "uniform-8") continue;
    row.mutable_metrics()->set_tokens_per_second(
        5e9 / static_cast<double>(row.metrics().weight_bytes() + 200'000));
  }
  const auto add_use = [&](const std::string& task, double seconds, int64_t bytes) {
    v1::TaskUse& use = *report.add_task_uses();
    use.set_task(task);
    use.set_seconds(seconds);
    use.set_peak_host_memory_bytes(bytes);
  };
  add_use("prepare", 18.25, 301'000'000);
  for (int trial = 1; trial <= index; ++trial) {
    add_use("trial-" + std::to_string(trial), 1.5, 220'000'000 + 1'000'000 * trial);
  }
  add_use("finalize", 21.5, 412'000'000);
  report.mutable_rows(2)->set_trial(name.TrialName(1));
  report.mutable_rows(3)->set_trial(name.TrialName(2));
  report.mutable_rows(4)->set_trial(name.TrialName(kChosen));
  report.mutable_rows(5)->set_trial(name.TrialName(kChosen));
  report.mutable_rows(5)->set_adapter_bytes(61'440);
  report.set_chosen_trial(name.TrialName(kChosen));
  report.set_budget_bytes(kBudget);
  report.add_notes(
      "Mutual information does not separate from its shuffled control on 32 samples: trust the "
      "measured sensitivities more than its ranking.");
  for (int step = 0; step <= 200; step += 20) {
    v1::FineTunePoint& point = *report.add_fine_tune_curve();
    point.set_step(step);
    point.set_selection_loss(1.46 + 0.14 * std::exp(-step / 60.0));
    if (step > 0) point.set_train_loss(point.selection_loss() - 0.01);
  }
  return example;
}

}  // namespace qpruner
