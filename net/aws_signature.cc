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

std::string Hmac(absl::string_view key, absl::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest, &size);
  return std::string(reinterpret_cast<char*>(digest), size);
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
  const std::string time = absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone());
  const std::string date = time.substr(0, 8);
  std::map<std::string, std::string> headers = request.headers;
  headers["host"] = request.host;
  headers["x-amz-date"] = time;
  if (scope.service == "s3") headers["x-amz-content-sha256"] = request.payload_sha256;
  if (!credentials.session_token.empty()) {
    headers["x-amz-security-token"] = credentials.session_token;
  }
  std::string canonical_headers;
  std::vector<std::string> names;
  for (const auto& [name, value] : headers) {
    absl::StrAppend(&canonical_headers, name, ":", value, "\n");
    names.push_back(name);
  }
  const std::string signed_names = absl::StrJoin(names, ";");
  const std::string canonical =
      absl::StrCat(request.method, "\n", request.path, "\n", CanonicalQuery(request.query), "\n",
                   canonical_headers, "\n", signed_names, "\n", request.payload_sha256);
  const std::string credential_scope =
      absl::StrCat(date, "/", scope.region, "/", scope.service, "/aws4_request");
  const std::string to_sign =
      absl::StrCat("AWS4-HMAC-SHA256\n", time, "\n", credential_scope, "\n", Sha256Hex(canonical));
  const std::string key =
      Hmac(Hmac(Hmac(Hmac(absl::StrCat("AWS4", credentials.secret_access_key), date), scope.region),
                scope.service),
           "aws4_request");
  const std::string signature = absl::BytesToHexString(Hmac(key, to_sign));

  headers.erase("host");
  std::vector<std::pair<std::string, std::string>> result(headers.begin(), headers.end());
  result.emplace_back(
      "authorization",
      absl::StrCat("AWS4-HMAC-SHA256 Credential=", credentials.access_key_id, "/", credential_scope,
                   ", SignedHeaders=", signed_names, ", Signature=", signature));
  return result;
}

}  // namespace qpruner
