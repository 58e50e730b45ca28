// What tests of the server need around a scripted job (tests/testing/scripted_job.h).
#ifndef QPRUNER_SERVER_TESTING_SCRIPTED_JOB_H_
#define QPRUNER_SERVER_TESTING_SCRIPTED_JOB_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "base/id_generator.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "qpruner/internal/v1/task.pb.h"
#include "server/artifacts/artifact_store.h"
#include "tests/testing/scripted_job.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::server {

// Distinct and repeatable. Thread-safe.
class CountingIds final : public IdGenerator {
 public:
  std::string Hex(int bytes) override {
    return absl::StrFormat("%0*x", 2 * bytes, next_.fetch_add(1));
  }

 private:
  std::atomic<int64_t> next_ = 1;
};

// Puts a file in place, as UploadArtifact does.
inline absl::Status StoreContent(ArtifactStore& artifacts, const std::string& content) {
  ASSIGN_OR_RETURN(const auto writer,
                   artifacts.Create(Sha256Hex(content), static_cast<int64_t>(content.size())));
  RETURN_IF_ERROR(writer->Append(content));
  return writer->Commit();
}

// And those of a task.
inline void UploadOutputs(ArtifactStore& artifacts, const internal::v1::TaskSpec& task) {
  for (const std::string& path : OutputsOf(task)) {
    const absl::Status stored = StoreContent(artifacts, ContentOf(path));
    ASSERT_TRUE(stored.ok()) << stored;
  }
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_SCRIPTED_JOB_H_
