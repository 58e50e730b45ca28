#include "worker/engine/tasks/prepare_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "worker/engine/evaluate/choice_item.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/formats/strict_json.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using internal::v1::PrepareResult;
using nlohmann::ordered_json;

constexpr char kStateFormat[] = "qpruner-prepare-state-1";
constexpr char kScoresFormat[] = "qpruner-prepare-scores-1";
// Keys of metadata, names of tensors.
constexpr char kFormat[] = "format";
constexpr char kTask[] = "task";
constexpr char kStage[] = "stage";
constexpr char kOutputs[] = "outputs";
constexpr char kMeasuredBlocks[] = "measured_blocks";
constexpr char kResult[] = "result";
constexpr char kPruning[] = "pruning";
constexpr char kSensitivities[] = "sensitivities";
constexpr char kGradientScores[] = "gradient_scores";

// Of each tensor that a fingerprint is taken of: enough to tell trained weights from others, and
// read in no time.
constexpr size_t kSamples = 4;
constexpr size_t kSampleBytes = 1024;

const char* StageName(PrepareStage stage) {
  return stage == PrepareStage::kMeasured ? "measured" : "pruned";
}

std::string StatePath(PrepareStage stage) {
  return absl::StrCat(kCheckpointFolder, "/", StageName(stage), ".safetensors");
}

std::string ScoresPath(const SavedScores& scores) {
  return scores.gradient_scores.empty() ? absl::StrCat(kCheckpointFolder, "/sensitivities-",
                                                       scores.measured_blocks, ".safetensors")
                                        : absl::StrCat(kCheckpointFolder, "/scores.safetensors");
}

absl::Status Refused(absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("Not a checkpoint of this work: ", why));
}

// Texts of any length, so that no two lists of them look alike.
class FingerprintHash {
 public:
  void Add(absl::string_view text) {
    const auto size = static_cast<uint64_t>(text.size());
    hash_.Update(absl::string_view(reinterpret_cast<const char*>(&size), sizeof size));
    hash_.Update(text);
  }
  void Add(int64_t number) {
    Add(absl::string_view(reinterpret_cast<const char*>(&number), sizeof number));
  }
  void Add(const TokenIds& ids) {
    Add(absl::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof ids[0]));
  }
  std::string Digest() && { return hash_.HexDigest(); }

 private:
  Sha256 hash_;
};

void AddModel(const Checkpoint& model, FingerprintHash& hash) {
  hash.Add(model.config().source.dump());
  for (const ExpectedTensor& expected : ExpectedTensors(model.config())) {
    const CheckpointTensor& tensor = model.tensor(expected.name);
    hash.Add(expected.name);
    hash.Add(DTypeName(tensor.dtype));
    for (const int64_t size : tensor.shape) hash.Add(size);
    hash.Add(static_cast<int64_t>(tensor.bytes.size()));
    // Of a small tensor the samples overlap.
    const size_t length = std::min(kSampleBytes, tensor.bytes.size());
    for (size_t i = 0; i < kSamples; ++i) {
      hash.Add(tensor.bytes.substr((tensor.bytes.size() - length) / (kSamples - 1) * i, length));
    }
  }
}

absl::StatusOr<std::shared_ptr<const SafetensorsReader>> OpenOf(const std::string& path,
                                                                absl::string_view format,
                                                                const std::string& fingerprint) {
  ASSIGN_OR_RETURN(std::shared_ptr<const SafetensorsReader> reader, SafetensorsReader::Open(path));
  const auto said = reader->metadata().find(kFormat);
  if (said == reader->metadata().end() || said->second != format) {
    return Refused(absl::StrCat("its metadata does not say ", format));
  }
  const auto task = reader->metadata().find(kTask);
  if (task == reader->metadata().end() || task->second != fingerprint) {
    return Refused("its spec, model or text is another one");
  }
  return reader;
}

TensorToWrite BytesTensor(const char* name, std::string bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  return {name, DType::kU8, {size}, [bytes = std::move(bytes)] { return bytes; }};
}

absl::StatusOr<absl::string_view> FindBytes(const SafetensorsReader& reader, const char* name) {
  const auto found = reader.tensors().find(name);
  if (found == reader.tensors().end() || found->second.dtype != DType::kU8 ||
      found->second.shape.size() != 1) {
    return Refused(absl::StrCat("no bytes ", name));
  }
  return found->second.bytes;
}

TensorToWrite TableTensor(const char* name, const std::vector<std::vector<double>>& table) {
  std::string bytes;
  for (const std::vector<double>& row : table) {
    bytes.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(double));
  }
  return {name,
          DType::kF64,
          {static_cast<int64_t>(table.size()),
           static_cast<int64_t>(table.empty() ? 0 : table.front().size())},
          [bytes = std::move(bytes)] { return bytes; }};
}

absl::StatusOr<std::vector<std::vector<double>>> TakeTable(const SafetensorsReader& reader,
                                                           const char* name, size_t rows,
                                                           size_t columns) {
  const auto found = reader.tensors().find(name);
  const std::vector<int64_t> shape = {static_cast<int64_t>(rows), static_cast<int64_t>(columns)};
  if (found == reader.tensors().end() || found->second.dtype != DType::kF64 ||
      found->second.shape != shape) {
    return Refused(absl::StrCat("no table ", name, " of ", rows, " x ", columns));
  }
  std::vector<std::vector<double>> table(rows, std::vector<double>(columns));
  const char* from = found->second.bytes.data();
  for (std::vector<double>& row : table) {
    std::memcpy(row.data(), from, columns * sizeof(double));
    from += columns * sizeof(double);
  }
  return table;
}

// Every regular file below `folder` but checkpoints, by path, with its size.
absl::StatusOr<std::map<std::string, int64_t>> ListOutputs(const std::string& folder) {
  std::map<std::string, int64_t> outputs;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(folder, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (!entry->is_regular_file(error)) continue;
    const std::string path = fs::relative(entry->path(), folder).generic_string();
    if (absl::StartsWith(path, absl::StrCat(kCheckpointFolder, "/"))) continue;
    outputs[path] = static_cast<int64_t>(entry->file_size(error));
    if (error) break;
  }
  if (error) return absl::ErrnoToStatus(error.value(), folder);
  return outputs;
}

}  // namespace

std::string PrepareFingerprint(const v1::CompressionSpec& spec, const Checkpoint& model,
                               const JobTexts& texts, const std::vector<ChoiceTask>& tasks) {
  FingerprintHash hash;
  v1::CompressionSpec kept = spec;
  kept.clear_limits();
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    kept.SerializeToCodedStream(&coded);
  }
  hash.Add(bytes);
  AddModel(model, hash);
  for (const TokenIds& sequence : texts.calibration) hash.Add(sequence);
  for (const std::vector<Window>* share : {&texts.selection, &texts.test}) {
    hash.Add(static_cast<int64_t>(share->size()));
    for (const Window& window : *share) {
      hash.Add(window.ids);
      hash.Add(window.context);
    }
  }
  for (const TrainingSequence& sequence : texts.fine_tune) {
    hash.Add(sequence.ids);
    hash.Add(sequence.masked);
  }
  for (const ChoiceTask& task : tasks) {
    hash.Add(task.name);
    for (const ChoiceItem& item : task.items) hash.Add(ChoiceItemRow(item));
  }
  return std::move(hash).Digest();
}

PrepareCheckpoint::PrepareCheckpoint(std::string input_dir, std::string output_dir,
                                     std::string fingerprint, ProgressReporter& progress)
    : input_dir_(std::move(input_dir)),
      output_dir_(std::move(output_dir)),
      fingerprint_(std::move(fingerprint)),
      progress_(progress) {}

std::string PrepareCheckpoint::InputPath(const std::string& path) const {
  return absl::StrCat(input_dir_, "/", path);
}

std::string PrepareCheckpoint::OutputPath(const std::string& path) const {
  return absl::StrCat(output_dir_, "/", path);
}

absl::StatusOr<PrepareState> PrepareCheckpoint::ReadState(
    const std::string& path, std::map<std::string, int64_t>& outputs) const {
  ASSIGN_OR_RETURN(const auto reader, OpenOf(path, kStateFormat, fingerprint_));
  const std::map<std::string, std::string>& metadata = reader->metadata();
  const auto stage = metadata.find(kStage), listed = metadata.find(kOutputs);
  PrepareState state;
  if (stage == metadata.end() || listed == metadata.end()) return Refused("metadata is missing");
  if (stage->second == StageName(PrepareStage::kMeasured)) {
    state.stage = PrepareStage::kMeasured;
  } else if (stage->second != StageName(PrepareStage::kPruned)) {
    return Refused("it is of an unknown stage");
  }
  ASSIGN_OR_RETURN(const nlohmann::json list, ParseStrictJsonObject(listed->second));
  for (const auto& [output, size] : list.items()) {
    if (!IsArtifactPath(output) || !size.is_number_integer())
      return Refused("a bad list of outputs");
    outputs[output] = size.get<int64_t>();
  }
  ASSIGN_OR_RETURN(const absl::string_view result, FindBytes(*reader, kResult));
  if (result.size() > std::numeric_limits<int>::max() ||
      !state.result.ParseFromArray(result.data(), static_cast<int>(result.size()))) {
    return Refused("its result is no message");
  }
  if (!state.result.groups().empty()) return Refused("its result is a finished one");
  if (reader->tensors().count(kPruning) > 0) {
    ASSIGN_OR_RETURN(const absl::string_view pruning, FindBytes(*reader, kPruning));
    RETURN_IF_ERROR(ParseStrictJsonObject(pruning).status());
    // Once more, with the members in the order that reports have them in.
    state.pruning = ordered_json::parse(pruning, nullptr, /*allow_exceptions=*/false);
    if (!state.pruning.is_object()) return Refused("its pruning report is no JSON object");
  }
  return state;
}

absl::Status PrepareCheckpoint::Bring(const std::string& from, const std::string& path) {
  const std::string to = OutputPath(path);
  std::error_code error;
  fs::create_directories(fs::path(to).parent_path(), error);
  // Folders of which one may only be read have no links between them.
  fs::create_hard_link(from, to, error);
  if (error) {
    error.clear();
    fs::copy_file(from, to, error);
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot bring ", path));
  return absl::OkStatus();
}

absl::StatusOr<PrepareState> PrepareCheckpoint::TakeState() {
  absl::Status failed = absl::NotFoundError("No checkpoint");
  for (const PrepareStage stage : {PrepareStage::kMeasured, PrepareStage::kPruned}) {
    const std::string path = StatePath(stage);
    std::error_code error;
    if (!fs::exists(InputPath(path), error)) continue;
    std::map<std::string, int64_t> outputs;
    absl::StatusOr<PrepareState> state = ReadState(InputPath(path), outputs);
    failed = state.status();
    if (failed.ok() && state->stage != stage) failed = Refused("it is of another stage");
    if (failed.ok()) failed = Bring(InputPath(path), path);
    for (const auto& [output, size] : outputs) {
      if (!failed.ok()) break;
      const std::string from = absl::StrCat(input_dir_, "/", kCheckpointOutputs, "/", output);
      const auto found = static_cast<int64_t>(fs::file_size(from, error));
      failed = error || found != size ? Refused(absl::StrCat("it lacks all of ", output))
                                      : Bring(from, output);
      outputs_.push_back(output);
    }
    if (failed.ok()) {
      state_path_ = path;
      goes_on_ = true;
      return state;
    }
    state_path_ = path;
    Forget();
  }
  return failed;
}

void PrepareCheckpoint::Forget() {
  std::error_code ignored;
  fs::remove(OutputPath(state_path_), ignored);
  for (const std::string& output : outputs_) fs::remove(OutputPath(output), ignored);
  state_path_.clear();
  outputs_.clear();
  goes_on_ = false;
}

absl::Status PrepareCheckpoint::TakeOutput(const std::string& path,
                                           const std::function<absl::Status()>& check) {
  const std::string from = absl::StrCat(input_dir_, "/", kCheckpointOutputs, "/", path);
  std::error_code error;
  if (!goes_on_ || !fs::exists(from, error)) return absl::NotFoundError(path);
  absl::Status status = Bring(from, path);
  if (status.ok()) status = check();
  if (status.ok()) {
    outputs_.push_back(path);
  } else {
    fs::remove(OutputPath(path), error);
  }
  return status;
}

absl::StatusOr<SavedScores> PrepareCheckpoint::TakeScores(size_t groups, size_t formats,
                                                          int64_t blocks) {
  absl::StatusOr<SavedScores> best = absl::NotFoundError("No scores");
  if (!goes_on_) return best;
  std::error_code error;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(InputPath(kCheckpointFolder), error)) {
    const std::string name = entry.path().filename().string();
    if (name != "scores.safetensors" && !absl::StartsWith(name, "sensitivities-")) continue;
    const auto take = [&]() -> absl::StatusOr<SavedScores> {
      ASSIGN_OR_RETURN(const auto reader,
                       OpenOf(entry.path().string(), kScoresFormat, fingerprint_));
      SavedScores scores;
      const auto measured = reader->metadata().find(kMeasuredBlocks);
      if (measured == reader->metadata().end() ||
          !absl::SimpleAtoi(measured->second, &scores.measured_blocks) ||
          scores.measured_blocks < 1 || scores.measured_blocks > blocks) {
        return Refused("no number of measured blocks");
      }
      ASSIGN_OR_RETURN(scores.sensitivities, TakeTable(*reader, kSensitivities, groups, formats));
      if (reader->tensors().count(kGradientScores) > 0) {
        if (scores.measured_blocks != blocks) return Refused("gradient scores came too early");
        ASSIGN_OR_RETURN(scores.gradient_scores,
                         TakeTable(*reader, kGradientScores, groups, formats));
      }
      return scores;
    };
    // There is one; of several, any that can be used will do.
    absl::StatusOr<SavedScores> scores = take();
    if (scores.ok()) {
      const std::string path = absl::StrCat(kCheckpointFolder, "/", name);
      if (Bring(entry.path().string(), path).ok()) scores_path_ = path;
      return scores;
    }
    best = scores.status();
  }
  return best;
}

void PrepareCheckpoint::Save(const PrepareState& state) {
  const auto save = [&]() -> absl::Status {
    RETURN_IF_ERROR(CreateFolders(OutputPath(kCheckpointFolder)));
    ASSIGN_OR_RETURN(const auto outputs, ListOutputs(output_dir_));
    std::vector<TensorToWrite> tensors;
    tensors.push_back(BytesTensor(kResult, state.result.SerializeAsString()));
    if (!state.pruning.is_null()) tensors.push_back(BytesTensor(kPruning, state.pruning.dump()));
    const std::string path = StatePath(state.stage);
    RETURN_IF_ERROR(WriteSafetensors(OutputPath(path), std::move(tensors),
                                     {{kFormat, kStateFormat},
                                      {kTask, fingerprint_},
                                      {kStage, StageName(state.stage)},
                                      {kOutputs, nlohmann::json(outputs).dump()}}));
    state_path_ = path;
    outputs_.clear();
    for (const auto& [output, size] : outputs) outputs_.push_back(output);
    return absl::OkStatus();
  };
  if (const absl::Status saved = save(); !saved.ok()) {
    progress_.Log(absl::StrCat("No checkpoint of the ", StageName(state.stage),
                               " model: ", absl::string_view(saved.message())),
                  /*warning=*/true);
    return;
  }
  Tell();
}

void PrepareCheckpoint::AddOutput(const std::string& path) {
  outputs_.push_back(path);
  Tell();
}

void PrepareCheckpoint::SaveScores(const SavedScores& scores) {
  if (state_path_.empty()) return;
  std::vector<TensorToWrite> tensors;
  tensors.push_back(TableTensor(kSensitivities, scores.sensitivities));
  if (!scores.gradient_scores.empty()) {
    tensors.push_back(TableTensor(kGradientScores, scores.gradient_scores));
  }
  const std::string path = ScoresPath(scores);
  const absl::Status saved =
      WriteSafetensors(OutputPath(path), std::move(tensors),
                       {{kFormat, kScoresFormat},
                        {kTask, fingerprint_},
                        {kMeasuredBlocks, absl::StrCat(scores.measured_blocks)}});
  if (!saved.ok()) {
    progress_.Log(absl::StrCat("No checkpoint of the scores: ", absl::string_view(saved.message())),
                  /*warning=*/true);
    return;
  }
  scores_path_ = path;
  Tell();
}

void PrepareCheckpoint::Tell() {
  // Without a state nothing can go on from the rest.
  if (state_path_.empty()) return;
  std::vector<std::string> paths = outputs_;
  paths.push_back(state_path_);
  if (!scores_path_.empty()) paths.push_back(scores_path_);
  progress_.Checkpoint(paths);
}

}  // namespace qpruner::engine
