// The search library's view of a job: records in, its plain values out. Pure functions.
#ifndef QPRUNER_SERVER_QUEUE_SEARCH_VIEW_H_
#define QPRUNER_SERVER_QUEUE_SEARCH_VIEW_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "qpruner/internal/v1/task.pb.h"
#include "qpruner/v1/job.pb.h"
#include "search/space.h"
#include "search/trial.h"

namespace qpruner::server {

// `metric` says which of pruned_selection's figures is the base quality.
search::SearchSpace ToSearchSpace(const internal::v1::PrepareResult& prepare,
                                  v1::Search::QualityMetric metric);

// INVALID_ARGUMENT: the space that a worker sent breaks a rule of the search, or does not offer
// exactly the candidate widths that `spec` asks for.
absl::Status CheckPrepareResult(const internal::v1::PrepareResult& prepare,
                                const v1::CompressionSpec& spec);

// The budget as bytes of all weights.
int64_t BudgetBytes(const v1::Search& search, const search::SearchSpace& space);

// The figure that the search minimises.
double Quality(const v1::ModelMetrics& metrics, v1::Search::QualityMetric metric);

std::vector<v1::GroupPrecision> ToPrecisions(const search::SearchSpace& space,
                                             const search::Assignment& assignment);

// INVALID_ARGUMENT: the precisions do not belong to the space.
absl::StatusOr<search::Assignment> ToAssignment(
    const search::SearchSpace& space,
    const google::protobuf::RepeatedPtrField<v1::GroupPrecision>& precisions);

// `trials` by index; those from position `visible_count` on count as pending even if they are
// finished.
absl::StatusOr<std::vector<search::Trial>> ToSearchTrials(const search::SearchSpace& space,
                                                          absl::Span<const v1::Trial> trials,
                                                          size_t visible_count,
                                                          v1::Search::QualityMetric metric);

// The front of the trials that are finished. `prepare` gives the space; `chosen_index` is 0 while
// nothing is chosen.
absl::StatusOr<v1::ParetoFront> BuildFront(const internal::v1::PrepareResult& prepare,
                                           const v1::CompressionSpec& spec,
                                           absl::Span<const v1::Trial> trials, int chosen_index);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_SEARCH_VIEW_H_
