#include "worker/engine/tasks/task_runner.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "proto/spec_defaults.h"
#include "worker/engine/tasks/finalize_task.h"
#include "worker/engine/tasks/prepare_task.h"
#include "worker/engine/tasks/spec_mapping.h"
#include "worker/engine/tasks/task_use.h"
#include "worker/engine/tasks/torch_guard.h"
#include "worker/engine/tasks/trial_task.h"

namespace qpruner::engine {

namespace fs = std::filesystem;
using internal::v1::EngineRequest;
using internal::v1::TaskResult;
using internal::v1::TaskSpec;

namespace {

absl::string_view KindOf(const TaskSpec& task) {
  switch (task.work_case()) {
    case TaskSpec::kPrepare:
      return "prepare";
    case TaskSpec::kTrial:
      return "trial";
    case TaskSpec::kFinalize:
      return "finalize";
    default:
      return "task";
  }
}

// Every regular file under `folder`, by path, hashed.
absl::Status ListOutputs(const std::string& folder, TaskResult& result) {
  std::vector<std::string> paths;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(folder, error);
       !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (entry->is_regular_file()) {
      paths.push_back(fs::relative(entry->path(), folder).generic_string());
    }
  }
  if (error) {
    return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot list outputs in ", folder));
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    // Those were for an attempt that is not needed any more.
    if (absl::StartsWith(path, absl::StrCat(kCheckpointFolder, "/"))) continue;
    ASSIGN_OR_RETURN(*result.add_outputs(), DescribeOutput(folder, path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<internal::v1::ArtifactRef> DescribeOutput(const std::string& output_dir,
                                                         const std::string& path) {
  const std::string file = absl::StrCat(output_dir, "/", path);
  internal::v1::ArtifactRef ref;
  ref.set_path(path);
  ASSIGN_OR_RETURN(*ref.mutable_sha256(), Sha256OfFile(file));
  std::error_code error;
  ref.set_size_bytes(static_cast<int64_t>(fs::file_size(file, error)));
  if (error) return absl::ErrnoToStatus(error.value(), file);
  return ref;
}

absl::StatusOr<TaskResult> TaskRunner::Run(const EngineRequest& request,
                                           ProgressReporter& progress) {
  TaskResult result;
  const UseMeter meter(device_, clock_);
  RETURN_IF_ERROR(
      GuardTorch(KindOf(request.task()), [&] { return Work(request, progress, result); }));
  *result.mutable_use() = meter.Read();
  RETURN_IF_ERROR(ListOutputs(request.output_dir(), result));
  return result;
}

absl::Status TaskRunner::Work(const EngineRequest& request, ProgressReporter& progress,
                              TaskResult& result) {
  const TaskSpec& task = request.task();
  v1::CompressionSpec spec = task.spec();
  FillDefaults(spec);
  if (task.has_prepare()) {
    prepared_.Clear();  // Another model is about to need the memory.
    ASSIGN_OR_RETURN(*result.mutable_prepare(),
                     RunPrepare(spec, request.input_dir(), request.builtin_dir(),
                                request.output_dir(), device_, clock_, progress));
    return absl::OkStatus();
  }
  if (!task.has_trial() && !task.has_finalize()) {
    return absl::UnimplementedError("Task is of a kind that this engine does not know");
  }
  ASSIGN_OR_RETURN(const PreparedModel* model,
                   prepared_.Get(spec, task.inputs(), request.input_dir()));
  LowerToPositions(model->source->config().max_position_embeddings, spec);
  if (task.has_trial()) {
    ASSIGN_OR_RETURN(*result.mutable_trial(),
                     RunTrial(spec, task.trial(), *model, clock_, progress));
  } else {
    ASSIGN_OR_RETURN(*result.mutable_finalize(),
                     RunFinalize(spec, task.finalize(), *model, request.input_dir(),
                                 request.builtin_dir(), request.output_dir(), clock_, progress));
  }
  return absl::OkStatus();
}

}  // namespace qpruner::engine
