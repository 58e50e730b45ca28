#include "net/s3_client.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/either_stop.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/stoppable_sleep.h"
#include "base/utf8.h"
#include "net/s3_xml.h"

namespace qpruner {
namespace {

constexpr char kTruncated[] = "true";
constexpr int kBriefTries = 3;
// The storage may take minutes for thousands of parts.
constexpr absl::Duration kJoiningTakesAtMost = absl::Minutes(10);

bool IsBucketName(absl::string_view name) {
  return name.size() >= 3 && name.size() <= 63 && std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(static_cast<unsigned char>(c)) ||
                  absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '-' || c == '.';
         });
}

// What the storage said, as a status of ours.
absl::Status Refusal(const HttpResponse& response, const std::string& what) {
  std::string code = XmlText(response.body, "Code");
  std::string said = XmlText(response.body, "Message");
  if (code.empty()) code = absl::StrCat("HTTP status ", response.status);
  const std::string message = absl::StrCat(what, ": ", code, said.empty() ? "" : ": ", said);
  if (code == "NoSuchBucket") {
    return absl::FailedPreconditionError(absl::StrCat(message, "; make the bucket first"));
  }
  if (code == "RequestTimeTooSkewed") {
    return absl::PermissionDeniedError(absl::StrCat(message, "; set this machine's clock"));
  }
  if (code == "ExpiredToken" || code == "InvalidToken" || code == "TokenRefreshRequired") {
    return absl::PermissionDeniedError(message);
  }
  // Damaged on the way: to be sent again.
  if (code == "XAmzContentSHA256Mismatch" || code == "BadDigest" || code == "IncompleteBody" ||
      code == "RequestTimeout" || code == "SlowDown" || response.status == 429) {
    return absl::UnavailableError(message);
  }
  if (response.status == 507 || code == "QuotaExceeded" || code == "XMinioStorageFull") {
    return absl::ResourceExhaustedError(message);
  }
  if (response.status == 404) return absl::NotFoundError(message);
  if (response.status == 401 || response.status == 403) return absl::PermissionDeniedError(message);
  if (response.status == 412) return absl::AbortedError(message);
  if (response.status == 416) return absl::OutOfRangeError(message);
  if (response.status >= 500) return absl::UnavailableError(message);
  if (response.status >= 300 && response.status < 400) {
    return absl::FailedPreconditionError(
        absl::StrCat(message, "; is the region or the endpoint another one?"));
  }
  return absl::InvalidArgumentError(message);
}

absl::Time ParseListedTime(const std::string& text) {
  absl::Time time;
  std::string error;
  // Unknown: as if it had just been stored, which keeps it longest.
  return absl::ParseTime(absl::RFC3339_full, text, &time, &error) ? time : absl::InfiniteFuture();
}

int64_t ParseSize(const std::string& text) {
  int64_t size = 0;
  return absl::SimpleAtoi(text, &size) ? size : -1;
}

}  // namespace

absl::StatusOr<S3Location> S3Location::Parse(absl::string_view url) {
  absl::string_view rest = url;
  const auto invalid = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("must be s3://bucket/prefix, ", why, ", is \"", CutUtf8(url, 200), "\""));
  };
  if (!absl::ConsumePrefix(&rest, "s3://")) return invalid("with the scheme s3");
  S3Location location;
  const size_t slash = rest.find('/');
  location.bucket = std::string(rest.substr(0, slash));
  if (!IsBucketName(location.bucket)) {
    return invalid("with a bucket of 3 to 63 lower-case letters, digits, dots and hyphens");
  }
  if (slash == absl::string_view::npos) return location;
  rest.remove_prefix(slash + 1);
  if (absl::StartsWith(rest, "/")) return invalid("without empty parts");
  absl::ConsumeSuffix(&rest, "/");
  if (rest.size() > 512 || !std::all_of(rest.begin(), rest.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '/' || c == '-' ||
               c == '_' || c == '.';
      })) {
    return invalid("with a prefix of at most 512 letters, digits, and . _ - /");
  }
  const std::string path = absl::StrCat("/", rest, "/");
  if (!rest.empty() && (absl::StrContains(path, "//") || absl::StrContains(path, "/./") ||
                        absl::StrContains(path, "/../"))) {
    return invalid("without empty parts, \".\" or \"..\"");
  }
  location.prefix = std::string(rest);
  return location;
}

absl::Status CheckS3Endpoint(const std::string& endpoint) {
  if (endpoint.empty() || UrlOrigin(endpoint) == absl::StripSuffix(endpoint, "/")) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("must be https://HOST[:PORT] or http://HOST[:PORT], is \"", endpoint, "\""));
}

std::string S3Location::Key(absl::string_view name) const {
  return prefix.empty() ? std::string(name) : absl::StrCat(prefix, "/", name);
}

S3Client::S3Client(S3Options options, std::string bucket)
    : options_(std::move(options)), bucket_(std::move(bucket)) {
  endpoint_ = options_.endpoint.empty()
                  ? absl::StrCat("https://s3.", options_.region, ".amazonaws.com")
                  : std::string(absl::StripSuffix(options_.endpoint, "/"));
  host_ = endpoint_.substr(endpoint_.find("://") + 3);
  // As curl writes it.
  if (absl::StartsWith(endpoint_, "https://"))
    host_ = std::string(absl::StripSuffix(host_, ":443"));
  if (absl::StartsWith(endpoint_, "http://")) host_ = std::string(absl::StripSuffix(host_, ":80"));
}

std::string S3Client::Path(const std::string& key) const {
  return key.empty() ? absl::StrCat("/", bucket_)
                     : absl::StrCat("/", bucket_, "/", PercentEncode(key, true));
}

absl::StatusOr<HttpResponse> S3Client::SendOnce(const Call& call, const std::stop_token& stop) {
  if (stop.stop_requested()) {
    return absl::CancelledError(absl::StrCat("Stopped before talking to ", endpoint_));
  }
  AwsRequest signing{.method = call.method,
                     .host = host_,
                     .path = Path(call.key),
                     .query = call.query,
                     .headers = call.headers,
                     .payload_sha256 = Sha256Hex(call.body)};
  if (call.method == "PUT" || call.method == "POST") {
    signing.headers["content-type"] = "application/octet-stream";
  }
  HttpRequest request;
  request.method = call.method;
  request.url = absl::StrCat(endpoint_, signing.path);
  if (!call.query.empty()) absl::StrAppend(&request.url, "?", CanonicalQuery(call.query));
  request.headers = SignedHeaders(signing, options_.credentials, {.region = options_.region},
                                  options_.clock->Now());
  request.body = call.body;
  request.on_headers = call.on_headers;
  request.sink = call.sink;
  request.connect_timeout = options_.connect_timeout;
  request.idle_timeout = std::max(options_.idle_timeout, call.idle_timeout);
  if (call.brief) request.total_timeout = options_.brief_timeout;
  request.stop = stop;
  ASSIGN_OR_RETURN(HttpResponse response, http_.Send(request));
  if (response.ok()) return response;
  return Refusal(response, absl::StrCat("S3 storage ", endpoint_, ", ", call.method, " ", bucket_,
                                        "/", call.key));
}

absl::StatusOr<HttpResponse> S3Client::Send(const Call& call) {
  Backoff backoff(options_.backoff, std::random_device{}());
  const EitherStop stop(call.stop, options_.stop);
  const int max_tries = call.brief ? std::min(kBriefTries, options_.max_tries) : options_.max_tries;
  for (int tries = 1;; ++tries) {
    absl::StatusOr<HttpResponse> response = SendOnce(call, stop.token());
    if (!absl::IsUnavailable(response.status()) || tries >= max_tries) return response;
    if (!SleepUnlessStopped(stop.token(), backoff.Next())) return response;
  }
}

absl::Status S3Client::Put(const std::string& key, absl::string_view data) {
  return Send({.method = "PUT", .key = key, .body = data}).status();
}

absl::Status S3Client::Get(const std::string& key, int64_t offset, int64_t max_bytes,
                           absl::FunctionRef<absl::Status(absl::string_view data)> sink,
                           std::stop_token stop_get, const std::string& if_match) {
  const EitherStop stop(std::move(stop_get), options_.stop);
  Backoff backoff(options_.backoff, std::random_device{}());
  const int64_t end = offset + max_bytes;
  int tries = 0;
  bool ended = false;
  while (!ended && offset < end) {
    absl::Status sunk;
    // The object's end, as this answer tells it.
    int64_t object_end = end;
    Call call{.method = "GET", .key = key};
    if (!if_match.empty()) call.headers["if-match"] = if_match;
    call.headers["range"] = absl::StrCat("bytes=", offset, "-", end - 1);
    call.on_headers = [&](const HttpResponse& response) -> absl::Status {
      // "bytes 0-9/100"
      const std::string range = response.Header("content-range");
      const std::string expected = absl::StrCat("bytes ", offset, "-");
      int64_t size = 0;
      if (response.status == 206 && absl::StartsWith(range, expected) &&
          absl::SimpleAtoi(range.substr(range.find('/') + 1), &size)) {
        object_end = size;
        return absl::OkStatus();
      }
      return absl::InternalError(absl::StrCat("S3 storage ", endpoint_, " was asked for ", expected,
                                              " and answered ", response.status,
                                              " with the range \"", range.substr(0, 100), "\""));
    };
    call.sink = [&](absl::string_view data) -> absl::Status {
      if (static_cast<int64_t>(data.size()) > end - offset) {
        return absl::InternalError(
            absl::StrCat("S3 storage ", endpoint_, " sent more than it was asked for"));
      }
      offset += static_cast<int64_t>(data.size());
      tries = 0;
      sunk = sink(data);
      return sunk;
    };
    const absl::Status status = SendOnce(call, stop.token()).status();
    if (!sunk.ok()) return sunk;
    if (absl::IsOutOfRange(status)) return absl::OkStatus();  // Begins at the end, or beyond.
    if (status.ok()) {
      // A whole answer; a shorter one than was asked for ends with the object.
      if (offset < end && offset < object_end) {
        return absl::InternalError(absl::StrCat("S3 storage ", endpoint_, " sent too little"));
      }
      ended = true;
    } else {
      if (!absl::IsUnavailable(status) || ++tries >= options_.max_tries) return status;
      if (!SleepUnlessStopped(stop.token(), backoff.Next())) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<S3Object> S3Client::Head(const std::string& key, std::stop_token stop) {
  ASSIGN_OR_RETURN(const HttpResponse response,
                   Send({.method = "HEAD", .key = key, .stop = std::move(stop), .brief = true}));
  S3Object object{.key = key,
                  .size_bytes = ParseSize(response.Header("content-length")),
                  .etag = response.Header("etag")};
  std::string error;
  if (!absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", response.Header("last-modified"),
                       &object.modify_time, &error)) {
    object.modify_time = absl::InfiniteFuture();
  }
  if (object.size_bytes < 0) {
    return absl::InternalError(absl::StrCat("S3 storage ", endpoint_, " gives no size of ", key));
  }
  return object;
}

absl::Status S3Client::Delete(const std::string& key) {
  const absl::StatusOr<HttpResponse> response =
      Send({.method = "DELETE", .key = key, .brief = true});
  if (absl::IsNotFound(response.status())) return absl::OkStatus();
  RETURN_IF_ERROR(response.status());
  // The storage has only put a marker in front of what is still there.
  return response->Header("x-amz-delete-marker") == "true" ? DeleteVersions(key) : absl::OkStatus();
}

absl::Status S3Client::DeleteVersions(const std::string& key) {
  Call list{.method = "GET", .query = {{"versions", ""}, {"prefix", key}}, .brief = true};
  while (true) {
    ASSIGN_OR_RETURN(const HttpResponse response, Send(list));
    for (const char* kind : {"Version", "DeleteMarker"}) {
      for (const absl::string_view entry : XmlElements(response.body, kind)) {
        if (XmlText(entry, "Key") != key) continue;
        const absl::Status status = Send({.method = "DELETE",
                                          .key = key,
                                          .query = {{"versionId", XmlText(entry, "VersionId")}},
                                          .brief = true})
                                        .status();
        if (!absl::IsNotFound(status)) RETURN_IF_ERROR(status);
      }
    }
    ASSIGN_OR_RETURN(const bool more,
                     MoveToNextPage(response, list,
                                    {{"NextKeyMarker", "key-marker"},
                                     {"NextVersionIdMarker", "version-id-marker"}}));
    // Keys are listed in order: behind this one there is only what begins with it.
    if (!more || list.query["key-marker"] > key) return absl::OkStatus();
  }
}

absl::StatusOr<bool> S3Client::MoveToNextPage(
    const HttpResponse& page, Call& list,
    std::initializer_list<std::pair<const char*, const char*>> markers) const {
  if (XmlText(page.body, "IsTruncated") != kTruncated) return false;
  const std::map<std::string, std::string> before = list.query;
  for (const auto& [element, parameter] : markers) {
    list.query.erase(parameter);
    if (std::string next = XmlText(page.body, element); !next.empty()) {
      list.query[parameter] = std::move(next);
    }
  }
  if (!list.query.contains(markers.begin()->second) || list.query == before) {
    return absl::InternalError(absl::StrCat("S3 storage ", endpoint_, " lists without an end"));
  }
  return true;
}

absl::Status S3Client::List(const std::string& prefix,
                            absl::FunctionRef<absl::Status(const S3Object& object)> visit,
                            std::stop_token stop) {
  Call call{.method = "GET", .query = {{"list-type", "2"}, {"prefix", prefix}}, .stop = stop};
  while (true) {
    ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
    for (const absl::string_view entry : XmlElements(response.body, "Contents")) {
      S3Object object{.key = XmlText(entry, "Key"),
                      .size_bytes = ParseSize(XmlText(entry, "Size")),
                      .modify_time = ParseListedTime(XmlText(entry, "LastModified")),
                      .etag = XmlText(entry, "ETag")};
      if (!absl::StartsWith(object.key, prefix)) continue;
      RETURN_IF_ERROR(visit(object));
    }
    ASSIGN_OR_RETURN(
        const bool more,
        MoveToNextPage(response, call, {{"NextContinuationToken", "continuation-token"}}));
    if (!more) return absl::OkStatus();
  }
}

absl::StatusOr<std::string> S3Client::BeginUpload(const std::string& key) {
  ASSIGN_OR_RETURN(const HttpResponse response,
                   Send({.method = "POST", .key = key, .query = {{"uploads", ""}}}));
  std::string id = XmlText(response.body, "UploadId");
  if (id.empty()) {
    return absl::InternalError(absl::StrCat("S3 storage ", endpoint_, " began no upload"));
  }
  return id;
}

absl::StatusOr<std::string> S3Client::PutPart(const std::string& key, const std::string& upload_id,
                                              int number, absl::string_view data) {
  ASSIGN_OR_RETURN(const HttpResponse response,
                   Send({.method = "PUT",
                         .key = key,
                         .query = {{"partNumber", absl::StrCat(number)}, {"uploadId", upload_id}},
                         .body = data}));
  return response.Header("etag");
}

absl::Status S3Client::CompleteUpload(const std::string& key, const std::string& upload_id,
                                      const std::vector<std::string>& etags) {
  std::string body = "<CompleteMultipartUpload>";
  for (size_t i = 0; i < etags.size(); ++i) {
    absl::StrAppend(&body, "<Part><PartNumber>", i + 1, "</PartNumber><ETag>", etags[i],
                    "</ETag></Part>");
  }
  absl::StrAppend(&body, "</CompleteMultipartUpload>");
  ASSIGN_OR_RETURN(HttpResponse response, Send({.method = "POST",
                                                .key = key,
                                                .query = {{"uploadId", upload_id}},
                                                .body = body,
                                                .idle_timeout = kJoiningTakesAtMost}));
  // The status line may be sent before the work is done, and an error after it.
  if (!absl::StrContains(response.body, "<Error>")) return absl::OkStatus();
  response.status = 500;
  return Refusal(response, absl::StrCat("S3 storage ", endpoint_, ", completing ", key));
}

absl::Status S3Client::AbortUpload(const std::string& key, const std::string& upload_id) {
  const absl::Status status =
      Send({.method = "DELETE", .key = key, .query = {{"uploadId", upload_id}}}).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::StatusOr<std::vector<S3Upload>> S3Client::ListUploads(const std::string& prefix) {
  std::vector<S3Upload> uploads;
  Call call{.method = "GET", .query = {{"uploads", ""}, {"prefix", prefix}}};
  while (true) {
    ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
    for (const absl::string_view entry : XmlElements(response.body, "Upload")) {
      S3Upload upload{.key = XmlText(entry, "Key"),
                      .id = XmlText(entry, "UploadId"),
                      .begin_time = ParseListedTime(XmlText(entry, "Initiated"))};
      if (absl::StartsWith(upload.key, prefix)) uploads.push_back(std::move(upload));
    }
    ASSIGN_OR_RETURN(const bool more, MoveToNextPage(response, call,
                                                     {{"NextKeyMarker", "key-marker"},
                                                      {"NextUploadIdMarker", "upload-id-marker"}}));
    if (!more) return uploads;
  }
}

std::string S3Client::Presign(const AwsRequest& request, absl::Time now,
                              absl::Duration lifetime) const {
  return absl::StrCat(
      endpoint_, request.path, "?",
      PresignedQuery(request, options_.credentials, {.region = options_.region}, now, lifetime));
}

std::string S3Client::PresignGet(const std::string& key, absl::Time now,
                                 absl::Duration lifetime) const {
  return Presign(
      {.method = "GET", .host = host_, .path = Path(key), .payload_sha256 = kUnsignedPayload}, now,
      lifetime);
}

PresignedPut S3Client::PresignPut(const std::string& key, const std::string& sha256,
                                  int64_t size_bytes, absl::Time now,
                                  absl::Duration lifetime) const {
  // Not x-amz-content-sha256: of a signed query it says nothing about the body.
  PresignedPut put{
      .headers = {{"x-amz-checksum-sha256", absl::Base64Escape(absl::HexStringToBytes(sha256))}}};
  AwsRequest request{.method = "PUT",
                     .host = host_,
                     .path = Path(key),
                     .headers = put.headers,
                     .payload_sha256 = kUnsignedPayload};
  request.headers["content-length"] = absl::StrCat(size_bytes);
  put.url = Presign(request, now, lifetime);
  return put;
}

absl::Status S3Client::CheckPresignedPuts(const std::string& key) {
  const std::string right = "as it was signed", wrong = "another content.";
  const PresignedPut put = PresignPut(key, Sha256Hex(right), static_cast<int64_t>(right.size()),
                                      options_.clock->Now(), absl::Minutes(5));
  const auto accepted = [&](const std::map<std::string, std::string>& headers,
                            absl::string_view body) -> absl::StatusOr<bool> {
    HttpRequest request{.method = "PUT", .url = put.url};
    request.headers.assign(headers.begin(), headers.end());
    request.body = body;
    request.connect_timeout = options_.connect_timeout;
    request.idle_timeout = options_.idle_timeout;
    request.stop = options_.stop;
    ASSIGN_OR_RETURN(const HttpResponse response, http_.Send(request));
    // 501 is how some refuse a header.
    if (response.status == 429 || (response.status >= 500 && response.status != 501)) {
      return Refusal(response, absl::StrCat("S3 storage ", endpoint_, ", presigned PUT"));
    }
    return response.ok();
  };
  struct Attempt {
    absl::string_view what;
    std::map<std::string, std::string> headers;
    absl::string_view body;
    bool acceptable;
  };
  std::map<std::string, std::string> with_copy = put.headers;
  with_copy["x-amz-copy-source"] = absl::StrCat("/", bucket_, "/", key);
  for (const Attempt& attempt : std::vector<Attempt>{
           {"what was signed", put.headers, right, true},
           {"another content", put.headers, wrong, false},
           {"another size", put.headers, absl::string_view(right).substr(1), false},
           {"content without its checksum", {}, wrong, false},
           {"a copy of another object", with_copy, right, false}}) {
    ASSIGN_OR_RETURN(const bool was_accepted, accepted(attempt.headers, attempt.body));
    if (was_accepted == attempt.acceptable) continue;
    Delete(key).IgnoreError();
    return absl::FailedPreconditionError(absl::StrCat("S3 storage ", endpoint_,
                                                      was_accepted ? " takes " : " does not take ",
                                                      attempt.what, " by a presigned PUT"));
  }
  return Delete(key);
}

absl::Status S3Client::Check(const std::string& prefix) {
  return Send({.method = "GET",
               .query = {{"list-type", "2"}, {"prefix", prefix}, {"max-keys", "1"}}})
      .status();
}

}  // namespace qpruner
