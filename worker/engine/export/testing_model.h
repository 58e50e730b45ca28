// For the tests of exports: the shipped model, texts that it writes, and where exports go.
#ifndef QPRUNER_WORKER_ENGINE_EXPORT_TESTING_MODEL_H_
#define QPRUNER_WORKER_ENGINE_EXPORT_TESTING_MODEL_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "worker/engine/model/weights.h"

namespace qpruner::engine {

// The model in `folder`, float32. Throws where it is not there.
std::unique_ptr<WeightSource> OpenModel(const std::string& folder);

// Texts that the model itself writes, drawn with a fixed seed. [4, 64]
at::Tensor WriteTexts(WeightSource& source);

double Perplexity(WeightSource& source, const at::Tensor& ids);

// As tests/compat/export_check.py reads it.
absl::Status WriteDocuments(const std::string& path, const at::Tensor& ids, double perplexity);

nlohmann::json ReadJson(const std::string& path);

// A folder that is removed again, or $QPRUNER_EXPORT_DIR, which is kept.
class ExportFolder {
 public:
  ExportFolder();
  ~ExportFolder();
  ExportFolder(const ExportFolder&) = delete;
  ExportFolder& operator=(const ExportFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool temporary_ = false;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_EXPORT_TESTING_MODEL_H_
