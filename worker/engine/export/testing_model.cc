#include "worker/engine/export/testing_model.h"

#include <ATen/ATen.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>
#include <stdexcept>
#include <vector>

#include "base/durable_file.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/decoder.h"

namespace qpruner::engine {

std::unique_ptr<WeightSource> OpenModel(const std::string& folder) {
  auto checkpoint = Checkpoint::Open(folder);
  if (!checkpoint.ok()) throw std::runtime_error(std::string(checkpoint.status().message()));
  return MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
}

at::Tensor WriteTexts(WeightSource& source) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  at::Tensor ids = at::ones({4, 1}, at::kLong);  // <s>
  while (ids.size(1) < 64) {
    const at::Tensor hidden = ForwardHidden(source, {ids})[0].select(1, -1);
    const at::Tensor next = at::multinomial(
        at::softmax(at::matmul(hidden, source.Head().to(hidden.scalar_type()).t()), -1), 1, false,
        generator);
    ids = at::cat({ids, next}, 1);
  }
  return ids;
}

double Perplexity(WeightSource& source, const at::Tensor& ids) {
  const at::Tensor hidden = ForwardHidden(source, {ids})[0];
  const at::Tensor log_p =
      at::log_softmax(at::matmul(hidden, source.Head().to(hidden.scalar_type()).t()), -1);
  const at::Tensor targets = ids.slice(1, 1).unsqueeze(-1);
  return std::exp(-log_p.slice(1, 0, -1).gather(-1, targets).to(at::kDouble).mean().item<double>());
}

absl::Status WriteDocuments(const std::string& path, const at::Tensor& ids, double perplexity) {
  nlohmann::json documents = nlohmann::json::array();
  for (int64_t i = 0; i < ids.size(0); ++i) {
    const int64_t* row = ids[i].const_data_ptr<int64_t>();
    documents.push_back(std::vector<int64_t>(row, row + ids.size(1)));
  }
  return WriteFileDurably(
      path, nlohmann::json{{"documents", documents}, {"perplexity", perplexity}}.dump());
}

nlohmann::json ReadJson(const std::string& path) {
  const auto text = ReadFile(path, 1 << 20);
  if (!text.ok()) throw std::runtime_error(std::string(text.status().message()));
  return nlohmann::json::parse(*text);
}

ExportFolder::ExportFolder() {
  if (const char* kept = ::getenv("QPRUNER_EXPORT_DIR")) {
    path_ = kept;
    std::filesystem::create_directories(path_);
  } else {
    path_ = (std::filesystem::temp_directory_path() / "export_test.XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("mkdtemp failed: " + path_);
    temporary_ = true;
  }
}

ExportFolder::~ExportFolder() {
  if (temporary_) std::filesystem::remove_all(path_);
}

}  // namespace qpruner::engine
