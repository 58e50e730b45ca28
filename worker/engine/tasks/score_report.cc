#include "worker/engine/tasks/score_report.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/durable_file.h"
#include "worker/engine/quantize/assignment.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using internal::v1::PrepareResult;
using internal::v1::SearchGroup;
using nlohmann::ordered_json;

std::vector<double> ToVector(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  return std::vector<double>(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
}

// Says so if mutual information is not told apart from what shuffled targets give (with few samples
// over 16 x 16 bins it usually is not).
void NoteMutualInformation(const MutualInformationScores& scores, PrepareResult& result) {
  size_t above = 0;
  double sum = 0, control_sum = 0;
  for (const MutualInformation& score : scores.groups) {
    above += score.nats > score.control_nats ? 1 : 0;
    sum += score.nats;
    control_sum += score.control_nats;
  }
  // Noise alone would put about half of them above, and the means on a par.
  if (10 * above >= 9 * scores.groups.size() && sum >= 1.25 * control_sum) return;
  const double count = static_cast<double>(std::max<size_t>(scores.groups.size(), 1));
  result.add_notes(absl::StrFormat(
      "Mutual information does not separate from its shuffled control (%d samples: mean %.3f "
      "against %.3f nats, %d of %d groups above their control); plans made from it say little",
      scores.sample_count, sum / count, control_sum / count, above, scores.groups.size()));
}

}  // namespace

void DescribeSearchSpace(const ModelConfig& config, const GroupScores& scores,
                         PrepareResult& result) {
  for (size_t i = 0; i < scores.groups.size(); ++i) {
    const LinearGroup& linears = scores.groups[i];
    SearchGroup& group = *result.add_groups();
    group.set_name(linears.name);
    group.set_parameter_count(ParameterCount(config, linears));
    group.set_mutual_information(scores.information.groups[i].nats);
    group.set_mutual_information_control(scores.information.groups[i].control_nats);
    for (const LinearKind kind : linears.linears)
      group.add_linears(LinearName(linears.block, kind));
    for (size_t f = 0; f < scores.formats.size(); ++f) {
      auto& choice = *group.add_choices();
      choice.set_bits(scores.formats[f].bits);
      choice.set_bytes(PackedBytes(config, linears, scores.formats[f]));
      choice.set_sensitivity(scores.sensitivities[i][f]);
      choice.set_gradient_score(scores.gradient_scores[i][f]);
    }
  }
  result.set_fixed_bytes(FixedBytes(config));
  result.set_mutual_information_sample_count(static_cast<int32_t>(scores.information.sample_count));
  NoteMutualInformation(scores.information, result);
}

ordered_json PruningReport(const std::vector<BlockImportance>& importance,
                           const PruningPlan& plan) {
  ordered_json blocks = ordered_json::array();
  for (size_t block = 0; block < importance.size(); ++block) {
    blocks.push_back({{"block", block},
                      {"kept_kv_heads", plan.blocks[block].kv_heads},
                      {"kept_mlp_channels", plan.blocks[block].mlp_channels},
                      {"kv_head_importance", ToVector(importance[block].kv_heads)},
                      {"mlp_channel_importance", ToVector(importance[block].mlp_channels)}});
  }
  ordered_json report;
  report["blocks"] = std::move(blocks);
  return report;
}

ordered_json WidthSearchReport(const WidthSearchOutcome& outcome) {
  ordered_json candidates = ordered_json::array();
  for (size_t i = 0; i < outcome.candidates.size(); ++i) {
    const WidthCandidate& candidate = outcome.candidates[i];
    ordered_json heads = ordered_json::array(), channels = ordered_json::array();
    for (const KeptCounts& counts : candidate.counts) {
      heads.push_back(counts.kv_heads);
      channels.push_back(counts.mlp_channels);
    }
    candidates.push_back({{"origin", candidate.origin},
                          {"chosen", i == outcome.best},
                          {"parameters", candidate.parameter_count},
                          {"kl_divergence_nats", candidate.divergence},
                          {"kv_heads", std::move(heads)},
                          {"mlp_channels", std::move(channels)}});
  }
  return candidates;
}

absl::Status WriteScoreReport(const std::string& path, const CalibrationUse& calibration,
                              const GroupScores& scores, const ModelConfig& config,
                              ordered_json pruning) {
  ordered_json groups = ordered_json::array();
  for (size_t i = 0; i < scores.groups.size(); ++i) {
    const LinearGroup& linears = scores.groups[i];
    ordered_json choices = ordered_json::array();
    for (size_t f = 0; f < scores.formats.size(); ++f) {
      choices.push_back({{"bits", scores.formats[f].bits},
                         {"format", FormatName(scores.formats[f])},
                         {"bytes", PackedBytes(config, linears, scores.formats[f])},
                         {"sensitivity_nats", scores.sensitivities[i][f]},
                         {"gradient_score_nats", scores.gradient_scores[i][f]}});
    }
    groups.push_back(
        {{"group", linears.name},
         {"parameters", ParameterCount(config, linears)},
         {"mutual_information_nats", scores.information.groups[i].nats},
         {"mutual_information_control_nats", scores.information.groups[i].control_nats},
         {"choices", std::move(choices)}});
  }
  ordered_json report;
  report["calibration"] = {{"samples", calibration.samples},
                           {"tokens_each", calibration.tokens_each},
                           {"seed", calibration.seed}};
  report["units"] = {
      {"sensitivity_nats", "mean KL(pruned || pruned with only this group quantized), a token"},
      {"gradient_score_nats", "first-order estimate of the same"},
      {"mutual_information_nats", "I(mean-pooled output; argmax of the logits)"}};
  report["mutual_information_samples"] = scores.information.sample_count;
  report["groups"] = std::move(groups);
  report["pruning"] = std::move(pruning);
  std::error_code error;  // A folder that is missing shows when the file is written.
  fs::create_directories(fs::path(path).parent_path(), error);
  return WriteFileDurably(path, report.dump(1));
}

}  // namespace qpruner::engine
