// Whether a job's budget can be met at all, from shapes alone.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_BUDGET_CHECK_H_
#define QPRUNER_WORKER_ENGINE_TASKS_BUDGET_CHECK_H_

#include <vector>

#include "absl/status/status.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/model/model_config.h"
#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

// FAILED_PRECONDITION with the reason BUDGET_TOO_SMALL: a model of this shape is larger than the
// budget even with every group in the smallest of `formats`. The server finds the same when PREPARE
// is done. OK without a budget.
absl::Status CheckBudget(const v1::Search& search, const ModelConfig& config,
                         const std::vector<Format>& formats);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_BUDGET_CHECK_H_
