// A file of multiple-choice questions.
#ifndef QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_FILE_H_
#define QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/engine/evaluate/choice_item.h"

namespace qpruner::engine {

struct ChoiceFileOptions {
  int64_t limit = 0;  // The first so many items; 0: all.
  std::string query_suffix;
};

// Reads JSON lines of the kinds that ChoiceItemOf knows (empty lines are passed over); or, if the
// file does not begin with '{', HellaSwag's text of six lines an item: context, number of the right
// ending, four endings. (That text has lost where ctx_b begins, so unlike lm-eval's data its first
// letter stays in lower case.)
//
// INVALID_ARGUMENT: the line and what is wrong with it; a file larger than 256 MiB, not UTF-8, or
// with no item. NOT_FOUND. Lines after `limit` items are not read.
absl::StatusOr<std::vector<ChoiceItem>> ReadChoiceFile(const std::string& path,
                                                       const ChoiceFileOptions& options = {});

// Writes `items` so that ReadChoiceFile reads them back.
absl::Status WriteChoiceFile(const std::string& path, const std::vector<ChoiceItem>& items);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EVALUATE_CHOICE_FILE_H_
