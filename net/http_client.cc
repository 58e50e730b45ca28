#include "net/http_client.h"

#include <curl/curl.h>

#include <algorithm>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"

namespace qpruner {
namespace {

// Of an answer that is an error, or that nobody asked for.
constexpr size_t kMaxErrorBodyBytes = 64 << 10;
constexpr size_t kMaxHeaderBytes = 256 << 10;
constexpr size_t kMaxIdleHandles = 16;

// Once a process, before any handle.
void InitializeCurl() {
  static const CURLcode done = curl_global_init(CURL_GLOBAL_DEFAULT);
  (void)done;
}

// A request at work.
struct Exchange {
  const HttpRequest& request;
  HttpResponse response;
  size_t header_bytes = 0;
  bool headers_shown = false;
  // Why a callback ended it.
  absl::Status ended;
  // What has come of an error's body is enough, and the rest is not waited for.
  bool enough = false;
  // Bytes of the body that request.source has given.
  int64_t sourced = 0;

  absl::Status Receive(absl::string_view data) {
    if (!response.ok()) {
      const size_t room = kMaxErrorBodyBytes - std::min(kMaxErrorBodyBytes, response.body.size());
      response.body.append(data.data(), std::min(room, data.size()));
      enough = data.size() > room;
      return enough ? absl::CancelledError("enough") : absl::OkStatus();
    }
    if (absl::Status shown = ShowHeaders(); !shown.ok()) return shown;
    if (request.sink) return request.sink(data);
    if (static_cast<int64_t>(response.body.size() + data.size()) > request.max_body_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "Answer is larger than ", request.max_body_bytes, " bytes: ", UrlOrigin(request.url)));
    }
    response.body.append(data.data(), data.size());
    return absl::OkStatus();
  }
  absl::Status ShowHeaders() {
    if (headers_shown || !response.ok()) return absl::OkStatus();
    headers_shown = true;
    return request.on_headers ? request.on_headers(response) : absl::OkStatus();
  }
};

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  Exchange& exchange = *static_cast<Exchange*>(user);
  const absl::string_view line =
      absl::StripTrailingAsciiWhitespace(absl::string_view(data, size * count));
  exchange.header_bytes += size * count;
  if (exchange.header_bytes > kMaxHeaderBytes) {
    exchange.ended = absl::ResourceExhaustedError("Answer has too many headers");
    return 0;
  }
  if (absl::StartsWith(line, "HTTP/")) {
    // Also after an interim answer such as 100.
    exchange.response = HttpResponse();
    const size_t space = line.find(' ');
    if (space != absl::string_view::npos) {
      exchange.response.status = atoi(std::string(line.substr(space + 1, 3)).c_str());
    }
  } else if (const size_t colon = line.find(':'); colon != absl::string_view::npos) {
    exchange.response.headers[absl::AsciiStrToLower(line.substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return size * count;
}

size_t OnBody(char* data, size_t size, size_t count, void* user) {
  Exchange& exchange = *static_cast<Exchange*>(user);
  exchange.ended = exchange.Receive(absl::string_view(data, size * count));
  return exchange.ended.ok() ? size * count : 0;
}

size_t OnSource(char* buffer, size_t size, size_t count, void* user) {
  Exchange& exchange = *static_cast<Exchange*>(user);
  const int64_t left = exchange.request.source_bytes - exchange.sourced;
  if (left <= 0) return 0;
  const absl::StatusOr<size_t> filled = exchange.request.source(
      buffer, static_cast<size_t>(std::min(left, static_cast<int64_t>(size * count))));
  if (filled.ok() && *filled > 0) {
    exchange.sourced += static_cast<int64_t>(*filled);
    return *filled;
  }
  exchange.ended =
      filled.ok() ? absl::DataLossError("A body was shorter than announced") : filled.status();
  return CURL_READFUNC_ABORT;
}

int OnProgress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const Exchange& exchange = *static_cast<Exchange*>(user);
  return exchange.request.stop.stop_requested() ? 1 : 0;
}

int64_t Milliseconds(absl::Duration duration) {
  return std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 1, 24 * 3600 * 1000);
}

}  // namespace

std::string HttpResponse::Header(const std::string& lower_case_name) const {
  const auto found = headers.find(lower_case_name);
  return found == headers.end() ? "" : found->second;
}

// Each has its connections; one is used by one thread at a time.
struct HttpClient::Handles {
  absl::Mutex mutex;
  std::vector<CURL*> idle ABSL_GUARDED_BY(mutex);

  CURL* Take() {
    {
      absl::MutexLock lock(&mutex);
      if (!idle.empty()) {
        CURL* const handle = idle.back();
        idle.pop_back();
        curl_easy_reset(handle);
        return handle;
      }
    }
    return curl_easy_init();
  }
  void Give(CURL* handle) {
    {
      absl::MutexLock lock(&mutex);
      if (idle.size() < kMaxIdleHandles) {
        idle.push_back(handle);
        return;
      }
    }
    curl_easy_cleanup(handle);
  }
};

HttpClient::HttpClient() : handles_(std::make_unique<Handles>()) { InitializeCurl(); }
HttpClient::~HttpClient() {
  for (CURL* handle : handles_->idle) curl_easy_cleanup(handle);
}

absl::StatusOr<HttpResponse> HttpClient::Send(const HttpRequest& request) {
  CURL* const handle = handles_->Take();
  if (handle == nullptr) return absl::ResourceExhaustedError("Cannot begin an HTTP request");
  Exchange exchange{.request = request};
  curl_slist* headers = nullptr;
  for (const auto& [name, value] : request.headers) {
    // Without a value, curl would leave the header out.
    headers = curl_slist_append(
        headers,
        (value.empty() ? absl::StrCat(name, ";") : absl::StrCat(name, ": ", value)).c_str());
  }
  // No wait for a "100 Continue".
  headers = curl_slist_append(headers, "Expect:");

  curl_easy_setopt(handle, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(handle, CURLOPT_PATH_AS_IS, 1L);
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_USERAGENT, "qpruner");
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, &OnHeader);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, &exchange);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, &OnBody);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &exchange);
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, &OnProgress);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, &exchange);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(Milliseconds(request.connect_timeout)));
  curl_easy_setopt(handle, CURLOPT_LOW_SPEED_LIMIT, 1024L);
  curl_easy_setopt(
      handle, CURLOPT_LOW_SPEED_TIME,
      static_cast<long>(std::max<int64_t>(1, absl::ToInt64Seconds(request.idle_timeout))));
  if (request.total_timeout != absl::InfiniteDuration()) {
    curl_easy_setopt(handle, CURLOPT_TIMEOUT_MS,
                     static_cast<long>(Milliseconds(request.total_timeout)));
  }
  if (request.method == "HEAD") {
    curl_easy_setopt(handle, CURLOPT_NOBODY, 1L);
  } else if (request.method == "PUT" && request.source) {
    curl_easy_setopt(handle, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(handle, CURLOPT_INFILESIZE_LARGE,
                     static_cast<curl_off_t>(request.source_bytes));
    curl_easy_setopt(handle, CURLOPT_READFUNCTION, &OnSource);
    curl_easy_setopt(handle, CURLOPT_READDATA, &exchange);
    // A kept connection may have been closed, and what was sent on it cannot be sent again.
    curl_easy_setopt(handle, CURLOPT_FRESH_CONNECT, 1L);
  } else if (request.method == "PUT" || request.method == "POST") {
    curl_easy_setopt(handle, CURLOPT_POST, 1L);
    curl_easy_setopt(handle, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(handle, CURLOPT_POSTFIELDS, request.body.empty() ? "" : request.body.data());
    curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  } else if (request.method != "GET") {
    curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
  const CURLcode code = curl_easy_perform(handle);
  curl_slist_free_all(headers);
  handles_->Give(handle);

  const std::string host = UrlOrigin(request.url);
  if (exchange.enough) return std::move(exchange.response);
  if (!exchange.ended.ok()) return exchange.ended;
  if (request.stop.stop_requested() && code != CURLE_OK) {
    return absl::CancelledError(absl::StrCat("Stopped while talking to ", host));
  }
  switch (code) {
    case CURLE_OK:
      if (absl::Status shown = exchange.ShowHeaders(); !shown.ok()) return shown;
      return std::move(exchange.response);
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return absl::InvalidArgumentError(absl::StrCat("Not a URL of HTTP: ", host));
    case CURLE_OUT_OF_MEMORY:
      return absl::ResourceExhaustedError("Out of memory in an HTTP request");
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
      return absl::UnauthenticatedError(absl::StrCat(
          host, " has no certificate that is trusted here: ", curl_easy_strerror(code)));
    default:
      return absl::UnavailableError(absl::StrCat(host, ": ", curl_easy_strerror(code)));
  }
}

std::string PercentEncode(absl::string_view text, bool keep_slashes) {
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || c == '-' || c == '.' || c == '_' || c == '~' ||
        (c == '/' && keep_slashes)) {
      encoded += c;
    } else {
      absl::StrAppendFormat(&encoded, "%%%02X", byte);
    }
  }
  return encoded;
}

std::string UrlOrigin(absl::string_view url) {
  const size_t scheme = url.find("://");
  if (scheme == absl::string_view::npos) return "";
  const size_t end = url.find_first_of("/?#", scheme + 3);
  std::string origin(url.substr(0, end));
  // A name and password have no place in messages.
  if (const size_t at = origin.rfind('@'); at != std::string::npos) {
    origin = absl::StrCat(url.substr(0, scheme + 3), absl::string_view(origin).substr(at + 1));
  }
  return origin;
}

}  // namespace qpruner
