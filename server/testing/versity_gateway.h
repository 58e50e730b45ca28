// A real S3 server of the test's own: versitygw on a temporary folder.
#ifndef QPRUNER_SERVER_TESTING_VERSITY_GATEWAY_H_
#define QPRUNER_SERVER_TESTING_VERSITY_GATEWAY_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/child_process.h"
#include "net/s3_client.h"

namespace qpruner::server {

class VersityGateway {
 public:
  // NOT_FOUND, with the reason: it is not there. QPRUNER_VERSITYGW names the program; otherwise it
  // is what tests/s3/fetch_versitygw has built.
  static absl::StatusOr<std::unique_ptr<VersityGateway>> Start();
  // The one of all tests of a program. Null, with the reason printed, where it cannot be run.
  static VersityGateway* Shared();
  ~VersityGateway();
  VersityGateway(const VersityGateway&) = delete;
  VersityGateway& operator=(const VersityGateway&) = delete;

  // The name of a new, empty bucket.
  std::string NewBucket();
  // From now on the bucket keeps what is replaced or deleted.
  absl::Status KeepVersions(const std::string& bucket) const;
  // Files of such old versions, of all buckets.
  int OldVersionCount() const;
  // How to reach it, with quick retries.
  S3Options options() const;
  // Where objects lie as files: BUCKET/KEY.
  const std::string& folder() const { return folder_; }
  // As when the storage is away.
  void Kill();
  absl::Status StartProcess();

 private:
  VersityGateway() = default;

  std::string program_;
  std::string folder_;
  int port_ = 0;
  int bucket_count_ = 0;
  std::unique_ptr<ChildProcess> process_;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_VERSITY_GATEWAY_H_
