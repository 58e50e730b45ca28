// Artifacts in an S3 storage: PREFIX/objects/SHA256.
//
// An object appears whole or not at all: small ones with one request, larger ones in parts that are
// joined only once size and SHA-256 of the whole are right. Every part travels with its own
// SHA-256, which the storage holds against what it got; reads from beginning to end are held
// against the artifact's name. What is unlisted may be removed, so one prefix belongs to one job
// store.
#ifndef QPRUNER_SERVER_ARTIFACTS_S3_ARTIFACT_STORE_H_
#define QPRUNER_SERVER_ARTIFACTS_S3_ARTIFACT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "net/s3_client.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

struct S3ArtifactStoreOptions {
  S3Location location;
  S3Options s3;
  // Names the job store that the artifacts belong to; empty: nobody asks.
  std::string owner;
  // How long URLs of artifacts live, in whole seconds. Zero: there are none; workers and clients
  // may have no way to the storage.
  absl::Duration url_lifetime = absl::ZeroDuration();
  // Whether there are URLs for uploads too: these ask more of the storage, which is tried first.
  bool upload_urls = false;
  // What a writer collects in memory before it sends it; larger for artifacts of more than 10,000
  // parts, 110 MB for the largest. S3 takes no smaller ones than 5 MiB.
  int64_t part_bytes = int64_t{8} << 20;
  // What a reader asks for at once.
  int64_t read_bytes = int64_t{8} << 20;
};

// Several servers of one job store may use the same prefix: the first one writes the store's name
// to PREFIX/owner. FAILED_PRECONDITION: no such bucket, or the prefix is another store's, or, with
// upload_urls, the storage takes other uploads than were signed.
// PERMISSION_DENIED: the credentials may not list it. UNAVAILABLE: the storage cannot be reached.
absl::StatusOr<std::unique_ptr<ArtifactStore>> OpenS3ArtifactStore(S3ArtifactStoreOptions options);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_S3_ARTIFACT_STORE_H_
