// Bounds how many downloads are open at a time. Each holds a file or a piece of one for as long as
// its client cares to read, so that without a bound one client could take all descriptors, or the
// memory, of the server.
#ifndef QPRUNER_SERVER_RPC_DOWNLOAD_LIMIT_H_
#define QPRUNER_SERVER_RPC_DOWNLOAD_LIMIT_H_

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/status_codec.h"

namespace qpruner::server {

// Thread-safe.
class DownloadLimit {
 public:
  DownloadLimit(int most, int most_of_a_project)
      : most_(most), most_of_a_project_(most_of_a_project) {}

  // Held by a download until it ends. The limit must outlive it.
  class Place {
   public:
    Place(DownloadLimit& limit, std::string project)
        : limit_(limit), project_(std::move(project)) {}
    ~Place() { limit_.Leave(project_); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    DownloadLimit& limit_;
    const std::string project_;
  };

  // RESOURCE_EXHAUSTED, with RetryInfo: there is none left.
  absl::StatusOr<std::unique_ptr<Place>> Take(const std::string& project) {
    absl::MutexLock lock(&mutex_);
    int& of_project = by_project_[project];
    const bool server_is_full = count_ >= most_;
    if (server_is_full || of_project >= most_of_a_project_) {
      if (of_project == 0) by_project_.erase(project);
      const std::string subject = server_is_full ? "server" : absl::StrCat("projects/", project);
      return QuotaError("TOO_MANY_DOWNLOADS", subject,
                        absl::StrCat("Too many downloads are open at a time, at most ",
                                     server_is_full ? most_ : most_of_a_project_, ": ", subject),
                        absl::Seconds(1));
    }
    ++of_project;
    ++count_;
    return std::make_unique<Place>(*this, project);
  }

 private:
  void Leave(const std::string& project) {
    absl::MutexLock lock(&mutex_);
    --count_;
    const auto of_project = by_project_.find(project);
    if (--of_project->second == 0) by_project_.erase(of_project);
  }

  const int most_;
  const int most_of_a_project_;
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, int> by_project_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_DOWNLOAD_LIMIT_H_
