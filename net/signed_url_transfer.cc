#include "net/signed_url_transfer.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace qpruner {
namespace {

constexpr absl::Duration kPause = absl::Minutes(5);
constexpr int64_t kWorthGoingOn = 1 << 20;
// Shorter than for what has no other way.
constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr absl::Duration kIdleTimeout = absl::Seconds(20);
// A storage makes gigabytes durable before it answers.
constexpr absl::Duration kStoringTakesAtMost = absl::Minutes(2);

}  // namespace

bool SignedUrlTransfer::usable() {
  absl::MutexLock lock(&mutex_);
  return clock_.Monotonic() >= paused_until_;
}

void SignedUrlTransfer::Pause() {
  absl::MutexLock lock(&mutex_);
  paused_until_ = clock_.Monotonic() + kPause;
}

absl::Status SignedUrlTransfer::Read(
    const std::string& url, int64_t offset, int64_t size_bytes,
    const std::function<absl::Status(absl::string_view data)>& sink, std::stop_token stop) {
  int64_t got = 0;
  absl::Status sunk;
  HttpRequest request{.url = url};
  request.headers = {{"range", absl::StrCat("bytes=", offset, "-")}};
  request.on_headers = [&](const HttpResponse& response) -> absl::Status {
    // Other bytes than asked for would be noticed only at the end, by their hash.
    if (response.status == 206 &&
        response.Header("content-range") ==
            absl::StrCat("bytes ", offset, "-", size_bytes - 1, "/", size_bytes)) {
      return absl::OkStatus();
    }
    return absl::UnavailableError(absl::StrCat(UrlOrigin(url), " does not send the bytes from ",
                                               offset, " of ", size_bytes, ", HTTP status ",
                                               response.status));
  };
  request.sink = [&](absl::string_view data) -> absl::Status {
    if (static_cast<int64_t>(data.size()) > size_bytes - offset - got) {
      return absl::UnavailableError(absl::StrCat(UrlOrigin(url), " sends too much"));
    }
    got += static_cast<int64_t>(data.size());
    return sunk = sink(data);
  };
  request.connect_timeout = kConnectTimeout;
  request.idle_timeout = kIdleTimeout;
  request.stop = std::move(stop);
  const absl::StatusOr<HttpResponse> response = http_.Send(request);
  if (!sunk.ok()) return sunk;
  if (absl::IsCancelled(response.status())) return response.status();
  if (response.ok() && response->ok() && got == size_bytes - offset) return absl::OkStatus();
  if (got < kWorthGoingOn) Pause();
  if (!response.ok()) return absl::UnavailableError(response.status().message());
  return absl::UnavailableError(absl::StrCat(UrlOrigin(url),
                                             response->ok() ? " sends too little" : " refuses",
                                             ", HTTP status ", response->status));
}

absl::Status SignedUrlTransfer::Write(
    const std::string& url, const std::map<std::string, std::string>& headers, int64_t size_bytes,
    const std::function<absl::StatusOr<size_t>(char* buffer, size_t size)>& source,
    std::stop_token stop) {
  absl::Status sourced;
  HttpRequest request{.method = "PUT", .url = url};
  request.headers.assign(headers.begin(), headers.end());
  request.source = [&](char* buffer, size_t size) {
    absl::StatusOr<size_t> filled = source(buffer, size);
    sourced = filled.status();
    return filled;
  };
  request.source_bytes = size_bytes;
  request.connect_timeout = kConnectTimeout;
  request.idle_timeout = kStoringTakesAtMost;
  request.stop = std::move(stop);
  const absl::StatusOr<HttpResponse> response = http_.Send(request);
  if (!sourced.ok()) return sourced;
  if (absl::IsCancelled(response.status())) return response.status();
  if (response.ok() && response->ok()) return absl::OkStatus();
  Pause();
  if (!response.ok()) return absl::UnavailableError(response.status().message());
  return absl::UnavailableError(
      absl::StrCat(UrlOrigin(url), " refuses, HTTP status ", response->status));
}

}  // namespace qpruner
