#include "worker/task_folders.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace qpruner::worker {

namespace fs = std::filesystem;

TaskFolders::TaskFolders(const std::string& data_dir)
    : inputs(absl::StrCat(data_dir, "/task/inputs")),
      outputs(absl::StrCat(data_dir, "/task/outputs")),
      scratch(absl::StrCat(data_dir, "/task/scratch")) {}

absl::Status TaskFolders::Create() const {
  for (const std::string& folder : {inputs, outputs, scratch}) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat("Cannot create ", folder));
    }
  }
  return absl::OkStatus();
}

void TaskFolders::Clear() const {
  for (const std::string& folder : {inputs, outputs, scratch}) {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
      fs::remove_all(entry.path(), ignored);
    }
  }
}

}  // namespace qpruner::worker
