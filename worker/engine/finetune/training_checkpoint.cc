#include "worker/engine/finetune/training_checkpoint.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/engine/finetune/lora_gradients.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/formats/strict_json.h"
#include "worker/engine/model/checkpoint_source.h"

namespace qpruner::engine {
namespace {

constexpr char kFormatName[] = "qpruner-training-1";

absl::Status Refused(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("Not a checkpoint of this training run: ", why));
}

void Add(const std::string& prefix, const std::vector<at::Tensor>& tensors,
         std::vector<TensorToWrite>& to_write) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    to_write.push_back({absl::StrCat(prefix, i), DType::kF32, tensors[i].sizes().vec(),
                        [tensor = tensors[i]] { return BytesOf(tensor, at::kFloat); }});
  }
}

// Copies tensors prefix0, prefix1, .. over `into`, which have the shapes that they must have.
absl::Status Take(const SafetensorsReader& reader, const std::string& prefix,
                  std::vector<at::Tensor>& into) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < into.size(); ++i) {
    const std::string name = absl::StrCat(prefix, i);
    const auto found = reader.tensors().find(name);
    if (found == reader.tensors().end()) return Refused(absl::StrCat("no tensor ", name));
    const TensorView& view = found->second;
    if (view.dtype != DType::kF32 || at::IntArrayRef(view.shape) != into[i].sizes()) {
      return Refused(absl::StrCat(name, " has another type or shape"));
    }
    at::Tensor host = at::empty(view.shape, at::kFloat);
    std::memcpy(host.data_ptr(), view.bytes.data(), view.bytes.size());
    into[i].copy_(host);
  }
  return absl::OkStatus();
}

nlohmann::json NumbersOf(const TrainingState& state) {
  nlohmann::json curve = nlohmann::json::array();
  for (const CurvePoint& point : state.curve) {
    curve.push_back({{"step", point.step},
                     {"train_loss", point.train_loss ? nlohmann::json(*point.train_loss) : nullptr},
                     {"held_out_loss", point.held_out_loss}});
  }
  // nlohmann writes the shortest digits that give the same double again.
  return {{"rank", state.adapter.rank},
          {"alpha", state.adapter.alpha},
          {"step", state.step},
          {"optimizer_step", state.optimizer.step},
          {"best_step", state.best_step},
          {"loss_sum", state.loss_sum},
          {"loss_count", state.loss_count},
          {"curve", std::move(curve)}};
}

// Reads members of one JSON object; remembers the first that is missing or of the wrong kind.
class Members {
 public:
  explicit Members(const nlohmann::json& object) : object_(object) {}

  int64_t Count(const char* name) {
    const nlohmann::json& value = Get(name);
    if (!value.is_number_integer() || value.get<int64_t>() < 0) return Bad(name), 0;
    return value.get<int64_t>();
  }
  double Number(const char* name) {
    const nlohmann::json& value = Get(name);
    if (!value.is_number()) return Bad(name), 0;
    return value.get<double>();
  }
  const nlohmann::json& Get(const char* name) {
    static const nlohmann::json nothing;
    const auto found = object_.find(name);
    return found == object_.end() ? nothing : *found;
  }
  void Bad(const char* name) {
    if (bad_.empty()) bad_ = name;
  }
  absl::Status status() const {
    return bad_.empty() ? absl::OkStatus() : Refused(absl::StrCat("bad or no member ", bad_));
  }

 private:
  const nlohmann::json& object_;
  std::string bad_;
};

absl::Status TakeNumbers(const nlohmann::json& json, TrainingState& state) {
  Members members(json);
  const int64_t rank = members.Count("rank");
  const double alpha = members.Number("alpha");
  state.step = members.Count("step");
  state.optimizer.step = members.Count("optimizer_step");
  state.best_step = members.Count("best_step");
  state.loss_sum = members.Number("loss_sum");
  state.loss_count = members.Count("loss_count");
  const nlohmann::json& curve = members.Get("curve");
  if (!curve.is_array()) members.Bad("curve");
  RETURN_IF_ERROR(members.status());
  if (rank != state.adapter.rank || alpha != state.adapter.alpha) {
    return Refused(absl::StrCat("it has rank ", rank, " and alpha ", alpha));
  }
  state.curve.clear();
  for (const nlohmann::json& entry : curve) {
    if (!entry.is_object()) return Refused("a point of the curve is not an object");
    Members point(entry);
    CurvePoint read{.step = point.Count("step"), .held_out_loss = point.Number("held_out_loss")};
    if (!point.Get("train_loss").is_null()) read.train_loss = point.Number("train_loss");
    RETURN_IF_ERROR(point.status());
    state.curve.push_back(read);
  }
  if (state.curve.empty() || state.best_step > state.step) {
    return Refused("its numbers contradict each other");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteTrainingCheckpoint(const std::string& path, const TrainingState& state) {
  std::vector<TensorToWrite> tensors;
  Add("adapter.", TrainedParameters(state.adapter), tensors);
  Add("best.", TrainedParameters(state.best), tensors);
  Add("optimizer.mean.", state.optimizer.mean, tensors);
  Add("optimizer.square_mean.", state.optimizer.square_mean, tensors);
  return WriteSafetensors(path, std::move(tensors),
                          {{"format", kFormatName}, {"state", NumbersOf(state).dump()}});
}

absl::StatusOr<TrainingState> ReadTrainingCheckpoint(const std::string& path,
                                                     const TrainingState& start) {
  ASSIGN_OR_RETURN(const auto reader, SafetensorsReader::Open(path));
  const std::map<std::string, std::string>& metadata = reader->metadata();
  const auto format = metadata.find("format"), numbers = metadata.find("state");
  if (format == metadata.end() || format->second != kFormatName || numbers == metadata.end()) {
    return Refused(absl::StrCat("its metadata does not say ", kFormatName));
  }
  const absl::StatusOr<nlohmann::json> json = ParseStrictJsonObject(numbers->second);
  if (!json.ok()) return Refused(json.status().message());
  TrainingState state = start.Clone();
  RETURN_IF_ERROR(TakeNumbers(*json, state));
  std::vector<at::Tensor> adapter = TrainedParameters(state.adapter);
  std::vector<at::Tensor> best = TrainedParameters(state.best);
  size_t expected = 2 * adapter.size();
  RETURN_IF_ERROR(Take(*reader, "adapter.", adapter));
  RETURN_IF_ERROR(Take(*reader, "best.", best));
  state.optimizer.mean.clear();
  state.optimizer.square_mean.clear();
  if (state.optimizer.step > 0) {
    for (const at::Tensor& parameter : adapter) {
      state.optimizer.mean.push_back(at::empty_like(parameter));
      state.optimizer.square_mean.push_back(at::empty_like(parameter));
    }
    RETURN_IF_ERROR(Take(*reader, "optimizer.mean.", state.optimizer.mean));
    RETURN_IF_ERROR(Take(*reader, "optimizer.square_mean.", state.optimizer.square_mean));
    expected *= 2;
  }
  if (reader->tensors().size() != expected) return Refused("it has tensors that do not belong");
  return state;
}

}  // namespace qpruner::engine
