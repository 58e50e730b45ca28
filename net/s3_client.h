// The calls of an S3 storage that QPruner needs, each with its retries.
#ifndef QPRUNER_NET_S3_CLIENT_H_
#define QPRUNER_NET_S3_CLIENT_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/backoff.h"
#include "base/clock.h"
#include "net/aws_signature.h"
#include "net/http_client.h"

namespace qpruner {

// s3://bucket/prefix.
struct S3Location {
  std::string bucket;
  // Without a slash at either end; may be empty.
  std::string prefix;

  // INVALID_ARGUMENT says what is wrong.
  static absl::StatusOr<S3Location> Parse(absl::string_view url);
  // The key of `name` below the prefix.
  std::string Key(absl::string_view name) const;
};

// Of S3Options::endpoint. INVALID_ARGUMENT: "must be ...".
absl::Status CheckS3Endpoint(const std::string& endpoint);

struct S3Options {
  // Where the storage is, as scheme://host[:port]; empty: Amazon's, of the region.
  std::string endpoint;
  std::string region = "us-east-1";
  AwsCredentials credentials;
  // Tries of one call, and the waits between them. A download that goes on is not bounded by tries.
  int max_tries = 5;
  Backoff::Options backoff = {.initial = absl::Milliseconds(200), .maximum = absl::Seconds(3)};
  absl::Duration connect_timeout = absl::Seconds(5);
  absl::Duration idle_timeout = absl::Seconds(20);
  // Of one try of Head and Delete, which callers make with locks held: those get three tries.
  absl::Duration brief_timeout = absl::Seconds(5);
  // For what is signed.
  Clock* clock = &RealClock();
  // Ends all calls with CANCELLED, those at work within a second, and those that come later.
  std::stop_token stop;
};

struct S3Object {
  std::string key;
  int64_t size_bytes = 0;
  absl::Time modify_time;
  // Changes with the content.
  std::string etag;
};

// An upload of one object that was signed for others to make.
struct PresignedPut {
  // A secret, as long as it lives.
  std::string url;
  // To be sent as they are, besides Content-Length.
  std::map<std::string, std::string> headers;
};

struct S3Upload {
  std::string key;
  std::string id;
  absl::Time begin_time;
};

// Of one bucket. Thread-safe; every call blocks. Errors, of any call: NOT_FOUND: no such object.
// FAILED_PRECONDITION: no such bucket. PERMISSION_DENIED: the credentials are not good for this, or
// no longer, or this machine's clock is wrong. UNAUTHENTICATED: the host's certificate is not
// trusted. RESOURCE_EXHAUSTED: the storage is full. UNAVAILABLE: it cannot be reached or is
// overloaded, after the retries. INVALID_ARGUMENT, INTERNAL: it refuses the request or answers
// nonsense. No message holds a secret.
class S3Client {
 public:
  S3Client(S3Options options, std::string bucket);

  // The storage refuses bytes whose SHA-256 is not the one that is signed here.
  absl::Status Put(const std::string& key, absl::string_view data);
  // Shows the bytes from `offset` on, at most `max_bytes` of them (less only at the end), in order.
  // A transfer that breaks off goes on where it stopped. An error of `sink` ends it. ABORTED: the
  // object's ETag is not `if_match`, if that is given.
  absl::Status Get(const std::string& key, int64_t offset, int64_t max_bytes,
                   absl::FunctionRef<absl::Status(absl::string_view data)> sink,
                   std::stop_token stop = {}, const std::string& if_match = "");
  absl::StatusOr<S3Object> Head(const std::string& key, std::stop_token stop = {});
  // One that is not there is fine. In a bucket that keeps versions all of them go, for which the
  // credentials must be good: a deletion that left them behind would be none.
  absl::Status Delete(const std::string& key);
  // Every object whose key begins with `prefix`, by key. An error of `visit` ends it.
  absl::Status List(const std::string& prefix,
                    absl::FunctionRef<absl::Status(const S3Object& object)> visit,
                    std::stop_token stop = {});

  // An upload in parts of at least 5 MiB, but for the last, numbered from 1. The object appears
  // with CompleteUpload.
  absl::StatusOr<std::string> BeginUpload(const std::string& key);
  // Returns the part's ETag.
  absl::StatusOr<std::string> PutPart(const std::string& key, const std::string& upload_id,
                                      int number, absl::string_view data);
  absl::Status CompleteUpload(const std::string& key, const std::string& upload_id,
                              const std::vector<std::string>& etags);
  // One that is not there is fine.
  absl::Status AbortUpload(const std::string& key, const std::string& upload_id);
  // Uploads that were begun and neither completed nor aborted.
  absl::StatusOr<std::vector<S3Upload>> ListUploads(const std::string& prefix);

  // A URL from which whoever has it may read this object, or any part of it, until `lifetime`
  // (whole seconds) after `now`: a secret, as long as it lives. Asks nobody: the object may not be
  // there.
  std::string PresignGet(const std::string& key, absl::Time now, absl::Duration lifetime) const;

  // The same for storing content of this size and SHA-256, and no other: if CheckPresignedPuts says
  // that the storage sees to that.
  PresignedPut PresignPut(const std::string& key, const std::string& sha256, int64_t size_bytes,
                          absl::Time now, absl::Duration lifetime) const;
  // Tries, with an object that it makes and removes, whether the storage refuses uploads that are
  // not what was signed. FAILED_PRECONDITION: it does not, or it takes none at all.
  absl::Status CheckPresignedPuts(const std::string& key);

  // Checks that the bucket is there and the credentials may list it.
  absl::Status Check(const std::string& prefix);

 private:
  struct Call {
    std::string method;
    // Empty: the bucket itself.
    std::string key;
    std::map<std::string, std::string> query;
    std::map<std::string, std::string> headers;
    absl::string_view body;
    std::function<absl::Status(const HttpResponse& response)> on_headers;
    std::function<absl::Status(absl::string_view data)> sink;
    std::stop_token stop;
    bool brief = false;
    // The storage may be silent for so long while it works; default: options.idle_timeout.
    absl::Duration idle_timeout = absl::ZeroDuration();
  };
  // Once; `stop` instead of the call's.
  absl::StatusOr<HttpResponse> SendOnce(const Call& call, const std::stop_token& stop);
  // With retries.
  absl::StatusOr<HttpResponse> Send(const Call& call);
  // Of this key.
  absl::Status DeleteVersions(const std::string& key);
  // Moves `list` behind `page`, its answer: each marker is the name of an element there and of the
  // parameter that takes it; the first one must be there. False: it was the last page.
  absl::StatusOr<bool> MoveToNextPage(
      const HttpResponse& page, Call& list,
      std::initializer_list<std::pair<const char*, const char*>> markers) const;
  std::string Presign(const AwsRequest& request, absl::Time now, absl::Duration lifetime) const;
  // Of a key, or of the bucket if it is empty; percent-encoded.
  std::string Path(const std::string& key) const;

  const S3Options options_;
  const std::string bucket_;
  std::string endpoint_;
  std::string host_;
  HttpClient http_;
};

}  // namespace qpruner

#endif  // QPRUNER_NET_S3_CLIENT_H_
