// A folder of a test's own.
#ifndef QPRUNER_TESTS_TESTING_TEMP_FOLDER_H_
#define QPRUNER_TESTS_TESTING_TEMP_FOLDER_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace qpruner {

// Removed at the end.
class TempFolder {
 public:
  TempFolder() : TempFolder(std::filesystem::temp_directory_path().string()) {}
  // Below `parent`, which must be there.
  explicit TempFolder(const std::string& parent) : path_(parent + "/qpruner-XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) abort();
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_TEMP_FOLDER_H_
