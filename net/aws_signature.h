// AWS Signature Version 4, as S3 wants it ("Authenticating Requests: Using the Authorization
// Header" and "Using Query Parameters" of the Amazon S3 API reference).
#ifndef QPRUNER_NET_AWS_SIGNATURE_H_
#define QPRUNER_NET_AWS_SIGNATURE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qpruner {

struct AwsCredentials {
  std::string access_key_id;
  std::string secret_access_key;
  // Of temporary credentials.
  std::string session_token;
};

// Instead of a body's SHA-256: any body.
inline constexpr char kUnsignedPayload[] = "UNSIGNED-PAYLOAD";

// What is signed of a request.
struct AwsRequest {
  std::string method;
  // As in the Host header: without a port if it is the scheme's own.
  std::string host;
  // Percent-encoded.
  std::string path;
  // Not encoded.
  std::map<std::string, std::string> query;
  // By lower-case name, besides host and x-amz-date; these too are signed.
  std::map<std::string, std::string> headers;
  // SHA-256 of the body: the storage refuses another body. Or kUnsignedPayload.
  std::string payload_sha256;
};

struct AwsScope {
  std::string region;
  std::string service = "s3";
};

// The headers to send besides Host: those of the request, x-amz-date, x-amz-content-sha256,
// x-amz-security-token where there is one, and Authorization.
std::vector<std::pair<std::string, std::string>> SignedHeaders(const AwsRequest& request,
                                                               const AwsCredentials& credentials,
                                                               const AwsScope& scope,
                                                               absl::Time now);

// The query that signs the request instead of headers, its own included, as it must be sent:
// whoever has it can make this request, with these headers and Host, until `lifetime` (whole
// seconds, from 1 to seven days) after `now`. For S3 the payload is kUnsignedPayload.
std::string PresignedQuery(const AwsRequest& request, const AwsCredentials& credentials,
                           const AwsScope& scope, absl::Time now, absl::Duration lifetime);

// "a=b&c=d", sorted and percent-encoded: as it is signed, and as it must be sent.
std::string CanonicalQuery(const std::map<std::string, std::string>& query);

}  // namespace qpruner

#endif  // QPRUNER_NET_AWS_SIGNATURE_H_
