// A job whose work is arithmetic: what a worker would answer, computed from the task alone. So
// every run of it has the same result, and a result that is not that one is wrong.
#ifndef QPRUNER_TESTS_TESTING_SCRIPTED_JOB_H_
#define QPRUNER_TESTS_TESTING_SCRIPTED_JOB_H_

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "qpruner/internal/v1/task.pb.h"
#include "qpruner/v1/job_service.pb.h"

namespace qpruner {

inline v1::CreateJobRequest ScriptedRequest() {
  v1::CreateJobRequest request;
  v1::CompressionSpec& spec = *request.mutable_job()->mutable_spec();
  spec.mutable_model()->set_uri("builtin://stories260k");
  spec.mutable_search()->set_max_average_bits(8);
  spec.mutable_search()->set_max_trials(8);
  return request;
}

inline internal::v1::ArtifactRef ArtifactOf(const std::string& path, const std::string& content) {
  internal::v1::ArtifactRef ref;
  ref.set_path(path);
  ref.set_sha256(Sha256Hex(content));
  ref.set_size_bytes(static_cast<int64_t>(content.size()));
  return ref;
}

inline std::string ContentOf(const std::string& path) { return "content of " + path; }

// The files a task of this kind makes.
inline std::vector<std::string> OutputsOf(const internal::v1::TaskSpec& task) {
  if (task.has_prepare()) return {"prepared/model.safetensors", "report/scores.json"};
  if (task.has_finalize()) return {"model/model.safetensors"};
  return {};
}

inline internal::v1::TaskResult ScriptedResult(const internal::v1::TaskSpec& task) {
  constexpr int kGroups = 6;
  constexpr int64_t kWeights = 8000;
  internal::v1::TaskResult result;
  for (const std::string& path : OutputsOf(task)) {
    *result.add_outputs() = ArtifactOf(path, ContentOf(path));
  }
  result.mutable_use()->set_peak_host_memory_bytes(1 << 20);
  auto measure = [&](const google::protobuf::RepeatedPtrField<v1::GroupPrecision>& precisions) {
    v1::ModelMetrics metrics;
    double kl = 0.01;
    int64_t bytes = 1000;
    for (int i = 0; i < precisions.size(); ++i) {
      kl += (i + 1) * std::exp2(-precisions[i].bits());
      bytes += kWeights * precisions[i].bits() / 8;
    }
    metrics.set_kl_divergence(kl);
    metrics.set_perplexity(std::exp(1 + kl));
    metrics.set_weight_bytes(bytes);
    metrics.set_token_count(1000);
    return metrics;
  };
  if (task.has_prepare()) {
    internal::v1::PrepareResult& prepare = *result.mutable_prepare();
    prepare.set_fixed_bytes(1000);
    for (int i = 0; i < kGroups; ++i) {
      internal::v1::SearchGroup& group = *prepare.add_groups();
      group.set_name(absl::StrCat("group", i));
      group.add_linears(absl::StrCat("linear", i));
      group.set_parameter_count(kWeights);
      group.set_mutual_information(0.1 * (i + 1));
      for (int bits : task.spec().search().candidate_bits()) {
        internal::v1::FormatChoice& choice = *group.add_choices();
        choice.set_bits(bits);
        choice.set_bytes(kWeights * bits / 8);
        choice.set_sensitivity((i + 1) * std::exp2(-bits));
      }
    }
    prepare.mutable_original_test()->set_perplexity(3);
    prepare.mutable_pruned_test()->set_perplexity(4);
    prepare.mutable_pruned_selection()->set_kl_divergence(0.01);
    prepare.mutable_pruned_selection()->set_perplexity(4);
  } else if (task.has_trial()) {
    *result.mutable_trial()->mutable_selection() = measure(task.trial().precisions());
    if (task.trial().measure_on_test()) {
      *result.mutable_trial()->mutable_test() = measure(task.trial().precisions());
    }
  } else {
    *result.mutable_finalize()->mutable_chosen_test() = measure(task.finalize().precisions());
    result.mutable_finalize()->mutable_fine_tuned_test()->set_perplexity(3.5);
    result.mutable_finalize()->set_adapter_bytes(10);
  }
  return result;
}

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_SCRIPTED_JOB_H_
