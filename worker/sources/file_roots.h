// Which files of this machine a job may have the engine read.
#ifndef QPRUNER_WORKER_SOURCES_FILE_ROOTS_H_
#define QPRUNER_WORKER_SOURCES_FILE_ROOTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "qpruner/v1/spec.pb.h"

namespace qpruner::worker {

// Folders, below which everything that a file:// URI of a job names must lie, wherever links lead.
class FileRoots {
 public:
  // `roots` are absolute paths of folders; "/" allows everything, none of them nothing.
  explicit FileRoots(std::vector<std::string> roots) : roots_(std::move(roots)) {}

  // Checks every file:// URI of a spec (model, texts, tasks), and of a model's folder every entry.
  // The job's own server has checked the names; what links on this machine lead to only it can see.
  // FAILED_PRECONDITION names the field and the path. What is not there is the engine's to report.
  absl::Status Check(const v1::CompressionSpec& spec) const;

 private:
  absl::Status CheckUri(const std::string& field, const std::string& uri) const;
  bool Allows(const std::string& path) const;

  const std::vector<std::string> roots_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_SOURCES_FILE_ROOTS_H_
