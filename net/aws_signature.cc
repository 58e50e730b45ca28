#include "net/aws_signature.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/sha256.h"
#include "net/http_client.h"

namespace qpruner {
namespace {

constexpr char kAlgorithm[] = "AWS4-HMAC-SHA256";

std::string Hmac(absl::string_view key, absl::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest, &size);
  return std::string(reinterpret_cast<char*>(digest), size);
}

// "20130524T000000Z"; its first eight characters are the date.
std::string TimeText(absl::Time now) {
  return absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone());
}

std::string CredentialScope(const AwsScope& scope, absl::string_view time) {
  return absl::StrCat(time.substr(0, 8), "/", scope.region, "/", scope.service, "/aws4_request");
}

std::string Names(const std::map<std::string, std::string>& headers) {
  return absl::StrJoin(headers, ";", [](std::string* out, const auto& header) {
    absl::StrAppend(out, header.first);
  });
}

// Of `request` with exactly its headers and query.
std::string Signature(const AwsRequest& request, const AwsCredentials& credentials,
                      const AwsScope& scope, absl::string_view time) {
  std::string headers;
  for (const auto& [name, value] : request.headers) {
    absl::StrAppend(&headers, name, ":", value, "\n");
  }
  const std::string canonical =
      absl::StrCat(request.method, "\n", request.path, "\n", CanonicalQuery(request.query), "\n",
                   headers, "\n", Names(request.headers), "\n", request.payload_sha256);
  const std::string to_sign = absl::StrCat(
      kAlgorithm, "\n", time, "\n", CredentialScope(scope, time), "\n", Sha256Hex(canonical));
  const std::string secret = absl::StrCat("AWS4", credentials.secret_access_key);
  const std::string key = Hmac(
      Hmac(Hmac(Hmac(secret, time.substr(0, 8)), scope.region), scope.service), "aws4_request");
  return absl::BytesToHexString(Hmac(key, to_sign));
}

}  // namespace

std::string CanonicalQuery(const std::map<std::string, std::string>& query) {
  std::map<std::string, std::string> encoded;
  for (const auto& [name, value] : query) {
    encoded[PercentEncode(name, false)] = PercentEncode(value, false);
  }
  return absl::StrJoin(encoded, "&", absl::PairFormatter("="));
}

std::vector<std::pair<std::string, std::string>> SignedHeaders(const AwsRequest& request,
                                                               const AwsCredentials& credentials,
                                                               const AwsScope& scope,
                                                               absl::Time now) {
  const std::string time = TimeText(now);
  AwsRequest sent = request;
  sent.headers["host"] = request.host;
  sent.headers["x-amz-date"] = time;
  if (scope.service == "s3") sent.headers["x-amz-content-sha256"] = request.payload_sha256;
  if (!credentials.session_token.empty()) {
    sent.headers["x-amz-security-token"] = credentials.session_token;
  }
  const std::string authorization =
      absl::StrCat(kAlgorithm, " Credential=", credentials.access_key_id, "/",
                   CredentialScope(scope, time), ", SignedHeaders=", Names(sent.headers),
                   ", Signature=", Signature(sent, credentials, scope, time));
  sent.headers.erase("host");
  std::vector<std::pair<std::string, std::string>> result(sent.headers.begin(), sent.headers.end());
  result.emplace_back("authorization", authorization);
  return result;
}

std::string PresignedQuery(const AwsRequest& request, const AwsCredentials& credentials,
                           const AwsScope& scope, absl::Time now, absl::Duration lifetime) {
  const std::string time = TimeText(now);
  AwsRequest sent = request;
  sent.headers["host"] = request.host;
  sent.query["X-Amz-Algorithm"] = kAlgorithm;
  sent.query["X-Amz-Credential"] =
      absl::StrCat(credentials.access_key_id, "/", CredentialScope(scope, time));
  sent.query["X-Amz-Date"] = time;
  sent.query["X-Amz-Expires"] = absl::StrCat(absl::ToInt64Seconds(lifetime));
  sent.query["X-Amz-SignedHeaders"] = Names(sent.headers);
  if (!credentials.session_token.empty()) {
    sent.query["X-Amz-Security-Token"] = credentials.session_token;
  }
  return absl::StrCat(CanonicalQuery(sent.query),
                      "&X-Amz-Signature=", Signature(sent, credentials, scope, time));
}

}  // namespace qpruner
