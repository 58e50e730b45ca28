#include "worker/engine/evaluate/loglikelihood.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/evaluate/head_scores.h"
#include "worker/engine/evaluate/python_text.h"
#include "worker/engine/model/decoder.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kMaxHiddenBytes = int64_t{512} << 20;

// Some of the distinct inputs, and the requests that read their hidden states.
struct Portion {
  std::vector<TokenIds> inputs;
  std::vector<std::vector<size_t>> readers;  // [input]: positions among all requests.
};

// Distinct inputs, longest first (so that a portion's batches are of like length).
std::vector<Portion> Divide(const std::vector<ContinuationRequest>& requests, int64_t max_tokens) {
  std::map<TokenIds, std::vector<size_t>> readers;
  for (size_t i = 0; i < requests.size(); ++i) readers[requests[i].input].push_back(i);
  std::vector<const std::pair<const TokenIds, std::vector<size_t>>*> order;
  for (const auto& entry : readers) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->first.size() > b->first.size(); });
  std::vector<Portion> portions;
  int64_t tokens = 0;
  for (const auto* entry : order) {
    const auto size = static_cast<int64_t>(entry->first.size());
    if (portions.empty() || tokens + size > max_tokens) {
      portions.emplace_back();
      tokens = 0;
    }
    tokens += size;
    portions.back().inputs.push_back(entry->first);
    portions.back().readers.push_back(entry->second);
  }
  return portions;
}

// Scores the requests that read the rows of one batch. hidden [batch, length, width]
void ScoreBatch(const TokenBatch& batch, const at::Tensor& hidden, const at::Tensor& head,
                const Portion& portion, const std::vector<ContinuationRequest>& requests,
                std::vector<Loglikelihood>& results) {
  std::vector<int64_t> rows, targets;
  for (size_t row = 0; row < batch.rows.size(); ++row) {
    const auto input = static_cast<size_t>(batch.rows[row]);
    const int64_t end = static_cast<int64_t>(row) * hidden.size(1) +
                        static_cast<int64_t>(portion.inputs[input].size());
    for (const size_t reader : portion.readers[input]) {
      const TokenIds& wanted = requests[reader].continuation;
      for (size_t i = 0; i < wanted.size(); ++i) {
        rows.push_back(end - static_cast<int64_t>(wanted.size() - i));
        targets.push_back(wanted[i]);
      }
    }
  }
  const TargetScores scores =
      ScoreTargets({hidden.flatten(0, 1).index_select(0, at::tensor(rows, at::kLong)), head},
                   at::tensor(targets, at::kLong));
  const double* const log_p = scores.log_probability.const_data_ptr<double>();
  const int64_t* const most_likely = scores.most_likely.const_data_ptr<int64_t>();
  size_t at = 0;
  for (const int64_t input : batch.rows) {
    for (const size_t reader : portion.readers[static_cast<size_t>(input)]) {
      Loglikelihood& result = results[reader];
      result.greedy = true;
      for (size_t i = 0; i < requests[reader].continuation.size(); ++i, ++at) {
        result.nats += log_p[at];
        result.greedy = result.greedy && most_likely[at] == targets[at];
      }
    }
  }
}

}  // namespace

absl::StatusOr<ContinuationRequest> EncodeContinuation(const Tokenizer& tokenizer,
                                                       absl::string_view context,
                                                       absl::string_view continuation,
                                                       int64_t max_length) {
  const absl::string_view stripped = StripRight(context);
  ASSIGN_OR_RETURN(TokenIds ids, tokenizer.EncodeDocument(stripped));
  ASSIGN_OR_RETURN(const TokenIds whole,
                   tokenizer.EncodeDocument(absl::StrCat(context, continuation)));
  ContinuationRequest request;
  if (whole.size() > ids.size()) {
    request.continuation.assign(whole.begin() + static_cast<int64_t>(ids.size()), whole.end());
  }
  if (ids.empty() || request.continuation.empty()) {
    return absl::InvalidArgumentError("has no token of its own behind its context");
  }
  const auto count = static_cast<int64_t>(request.continuation.size());
  if (count > max_length) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", count, " tokens; the model sees at most ", max_length));
  }
  ids.insert(ids.end(), request.continuation.begin(), request.continuation.end());
  const auto length = static_cast<int64_t>(ids.size());
  ids.erase(ids.begin(), ids.begin() + std::max<int64_t>(0, length - (max_length + 1)));
  ids.pop_back();
  request.input = std::move(ids);
  return request;
}

std::vector<Loglikelihood> MeasureLoglikelihoods(WeightSource& source,
                                                 const std::vector<ContinuationRequest>& requests,
                                                 int64_t batch_tokens,
                                                 const std::function<void(double)>& on_progress) {
  const ModelConfig& config = source.config();
  const int64_t token_bytes =
      config.hidden_size * static_cast<int64_t>(c10::elementSize(source.dtype()));
  const std::vector<Portion> portions = Divide(requests, kMaxHiddenBytes / token_bytes);
  std::vector<Loglikelihood> results(requests.size());
  const at::Tensor head = source.Head();
  for (size_t i = 0; i < portions.size(); ++i) {
    const Portion& portion = portions[i];
    const std::vector<TokenBatch> batches = MakeBatches(portion.inputs, batch_tokens);
    const std::vector<at::Tensor> hidden =
        ForwardHidden(source, BatchIds(batches), [&](int64_t block) {
          if (!on_progress) return;
          const double within =
              static_cast<double>(block + 1) / static_cast<double>(config.num_blocks());
          on_progress((static_cast<double>(i) + within) / static_cast<double>(portions.size()));
        });
    for (size_t b = 0; b < batches.size(); ++b) {
      ScoreBatch(batches[b], hidden[b], head, portion, requests, results);
    }
  }
  return results;
}

}  // namespace qpruner::engine
