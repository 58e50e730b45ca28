// What a task's worker reads by its own ways: files of its machine, model hubs, buckets. All else
// comes from the server or with the program.
#ifndef QPRUNER_PROTO_TASK_URIS_H_
#define QPRUNER_PROTO_TASK_URIS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "qpruner/internal/v1/task.pb.h"

namespace qpruner {

struct NamedUri {
  std::string field;  // "evaluation.tasks[0].uri".
  std::string uri;
};

// Whatever a spec names, set or not: its model, texts and tasks.
std::vector<NamedUri> UrisOf(const v1::CompressionSpec& spec);

// Whether the task works on the original model: trials work on the prepared one, and so does the
// last task unless it learns from the original.
bool ReadsOriginalModel(const internal::v1::TaskSpec& task);

// The file:// URIs of the task's spec, which are checked for every task, and the model's hf:// or
// s3:// URI if the task reads it.
std::vector<std::string> UrisReadByWorker(const internal::v1::TaskSpec& task);

// Whether `uri` is one of `prefixes` or below one, part by part. A prefix that ends with a slash,
// such as "hf://", is matched as it stands.
bool IsBelowAnyUri(absl::string_view uri, absl::Span<const std::string> prefixes);

}  // namespace qpruner

#endif  // QPRUNER_PROTO_TASK_URIS_H_
