// The GGUF export of a job: which type each linear gets, the file, and what it measures.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_GGUF_EXPORT_H_
#define QPRUNER_WORKER_ENGINE_TASKS_GGUF_EXPORT_H_

#include <functional>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "qpruner/v1/job.pb.h"
#include "qpruner/v1/spec.pb.h"
#include "worker/engine/evaluate/token_metrics.h"
#include "worker/engine/export/model_card.h"
#include "worker/engine/formats/ggml_type.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/assignment.h"

namespace qpruner::engine {

// True if the job asks for `format`.
bool WantsExport(const v1::Export& options, v1::Export::Format format);

// The GGUF type of every linear, by the nominal width of its format: up to 4, up to 8, more.
std::map<std::string, GgmlType> GgufTypesOf(const v1::Export& options,
                                            const FormatAssignment& assignment);

struct GgufExport {
  v1::ModelMetrics metrics;  // Of the file as read back.
  std::vector<std::string> notes;
};

// Writes `folder`/model.gguf from `source`'s weights and `folder`/README.md, `card` with a row for
// the file. `measure` evaluates a source. `prepared` is the folder whose tokenizer is written.
absl::StatusOr<GgufExport> ExportGguf(const std::string& folder, const v1::Export& options,
                                      const FormatAssignment& assignment, WeightSource& source,
                                      const std::string& prepared, ModelCard card,
                                      const std::function<TokenMetrics(WeightSource&)>& measure);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_GGUF_EXPORT_H_
