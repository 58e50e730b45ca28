// Models of a Hugging Face hub, or of a mirror that speaks its HTTP interface.
#ifndef QPRUNER_WORKER_SOURCES_HUB_CLIENT_H_
#define QPRUNER_WORKER_SOURCES_HUB_CLIENT_H_

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/backoff.h"
#include "base/hub_model.h"
#include "net/http_client.h"
#include "worker/artifact_cache.h"

namespace qpruner::worker {

// A model at one commit.
struct HubSnapshot {
  struct File {
    std::string name;
    int64_t size_bytes = 0;
    // Of weights and other large files: SHA-256.
    std::string sha256;
    // Of the others: the SHA-1 of a git blob.
    std::string git_blob_sha1;
  };
  // 40 hexadecimal digits.
  std::string commit;
  // Those that belong to the model.
  std::vector<File> files;
};

struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  // Sent to the endpoint and to no other host. Empty: none.
  std::string token;
  // Tries without a byte of progress, and the waits between them.
  int max_tries = 8;
  Backoff::Options backoff = {.initial = absl::Milliseconds(500), .maximum = absl::Seconds(30)};
  // A hub that asks for a longer wait (429) is not waited for.
  absl::Duration longest_retry_after = absl::Minutes(5);
  absl::Duration idle_timeout = absl::Seconds(30);
};

// Thread-safe. Every call blocks. Errors, of any call: NOT_FOUND: no such model, revision or file.
// FAILED_PRECONDITION: it needs a token, or another one. UNAVAILABLE: the hub cannot be reached,
// breaks off again and again, or answers nonsense. CANCELLED. No message holds the token or the
// query of a URL.
class HubClient {
 public:
  explicit HubClient(HubOptions options);

  absl::StatusOr<HubSnapshot> Resolve(const HubModel& model, std::stop_token stop);

  // Shows the file's bytes from `offset` on. A transfer that breaks off goes on where it stopped.
  // DATA_LOSS: it is longer or shorter than the snapshot says. The caller checks the hash.
  absl::Status Fetch(const std::string& repository, const HubSnapshot& snapshot,
                     const HubSnapshot::File& file, int64_t offset, const ArtifactCache::Sink& sink,
                     std::stop_token stop);

 private:
  // Follows redirects. `start` asks for the bytes from there on.
  absl::StatusOr<HttpResponse> Get(const std::string& url, HttpRequest request);
  // Waits before the next try; not OK: no further one, with this status.
  absl::Status AwaitNextTry(const absl::Status& failure, absl::Duration retry_after, int tries,
                            Backoff& backoff, std::stop_token stop);

  const HubOptions options_;
  HttpClient http_;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_SOURCES_HUB_CLIENT_H_
