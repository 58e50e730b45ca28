#include "worker/sources/hub_client.h"

#include <algorithm>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/model_file.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "base/stoppable_sleep.h"
#include "nlohmann/json.hpp"

namespace qpruner::worker {
namespace {

using nlohmann::json;

constexpr int kMaxRedirects = 5;
constexpr int64_t kMaxListingBytes = int64_t{16} << 20;

bool IsHex(absl::string_view text, size_t size) {
  return text.size() == size && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
         });
}

absl::Duration RetryAfter(const HttpResponse& response) {
  int64_t seconds = 0;
  return absl::SimpleAtoi(response.Header("retry-after"), &seconds) && seconds > 0
             ? absl::Seconds(seconds)
             : absl::ZeroDuration();
}

// A status of the hub's that is no answer.
absl::Status Refusal(const HttpResponse& response, const std::string& what) {
  const std::string message = absl::StrCat("model.uri: ", what, ": HTTP status ", response.status);
  switch (response.status) {
    case 401:
    case 403:
      // The hub says 401 of what is not there as well, to those who could not see it anyway.
      return absl::FailedPreconditionError(absl::StrCat(
          message,
          ": there is no such model, or it needs a token with access to it (the worker's "
          "--hub-token-file)"));
    case 404:
      return absl::NotFoundError(absl::StrCat(message, ": no such model, revision or file"));
    default:
      return absl::UnavailableError(message);
  }
}

// A file as the hub lists it; nothing if it is none of the model's. UNAVAILABLE: the
// listing is broken.
absl::StatusOr<std::optional<HubSnapshot::File>> ParseFile(const json& entry) {
  const auto broken = [] { return absl::UnavailableError("the hub's listing cannot be read"); };
  if (!entry.is_object() || !entry.contains("rfilename") || !entry["rfilename"].is_string()) {
    return broken();
  }
  HubSnapshot::File file{.name = entry["rfilename"].get<std::string>()};
  if (!IsModelFile(file.name)) return std::optional<HubSnapshot::File>();
  const auto size = entry.find("size");
  if (size == entry.end() || !size->is_number_integer()) return broken();
  file.size_bytes = size->get<int64_t>();
  if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
    const auto sha256 = lfs->find("sha256");
    if (sha256 == lfs->end() || !sha256->is_string()) return broken();
    file.sha256 = sha256->get<std::string>();
    if (!IsSha256Hex(file.sha256)) return broken();
  } else {
    const auto blob = entry.find("blobId");
    if (blob == entry.end() || !blob->is_string()) return broken();
    file.git_blob_sha1 = blob->get<std::string>();
    if (!IsHex(file.git_blob_sha1, 40)) return broken();
  }
  if (file.size_bytes < 0) return broken();
  return std::optional<HubSnapshot::File>(std::move(file));
}

absl::StatusOr<HubSnapshot> ParseSnapshot(const std::string& body) {
  const json listing = json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!listing.is_object() || !listing.contains("sha") || !listing["sha"].is_string() ||
      !listing.contains("siblings") || !listing["siblings"].is_array()) {
    return absl::UnavailableError("the hub's listing cannot be read");
  }
  HubSnapshot snapshot{.commit = listing["sha"].get<std::string>()};
  if (!IsHex(snapshot.commit, 40)) {
    return absl::UnavailableError("the hub names no commit");
  }
  for (const json& entry : listing["siblings"]) {
    ASSIGN_OR_RETURN(std::optional<HubSnapshot::File> file, ParseFile(entry));
    if (file) snapshot.files.push_back(*std::move(file));
  }
  return snapshot;
}

}  // namespace

HubClient::HubClient(HubOptions options)
    : options_([&] {
        options.endpoint = std::string(absl::StripSuffix(options.endpoint, "/"));
        return std::move(options);
      }()) {}

absl::StatusOr<HttpResponse> HubClient::Get(const std::string& url, HttpRequest request) {
  request.url = url;
  request.idle_timeout = options_.idle_timeout;
  const std::string own = UrlOrigin(options_.endpoint);
  const std::vector<std::pair<std::string, std::string>> headers = request.headers;
  for (int redirects = 0; redirects <= kMaxRedirects; ++redirects) {
    request.headers = headers;
    // Storage that the hub sends on to has a signature in the URL and needs no token of ours.
    if (!options_.token.empty() && UrlOrigin(request.url) == own) {
      request.headers.emplace_back("authorization", absl::StrCat("Bearer ", options_.token));
    }
    ASSIGN_OR_RETURN(HttpResponse response, http_.Send(request));
    if (response.status < 300 || response.status >= 400 || response.status == 304) return response;
    const std::string location = response.Header("location");
    if (absl::StartsWith(location, "/") && !absl::StartsWith(location, "//")) {
      request.url = UrlOrigin(request.url) + location;
    } else if (absl::StartsWith(location, "https://") ||
               (absl::StartsWith(location, "http://") && absl::StartsWith(own, "http://"))) {
      request.url = location;
    } else {
      return absl::UnavailableError(absl::StrCat(UrlOrigin(request.url),
                                                 " redirects to where no model is fetched from: \"",
                                                 UrlOrigin(location), "\""));
    }
  }
  return absl::UnavailableError(
      absl::StrCat(own, " redirects more than ", kMaxRedirects, " times"));
}

absl::Status HubClient::AwaitNextTry(const absl::Status& failure, absl::Duration retry_after,
                                     int tries, Backoff& backoff, std::stop_token stop) {
  if (!absl::IsUnavailable(failure) || tries >= options_.max_tries ||
      retry_after > options_.longest_retry_after) {
    return failure;
  }
  const absl::Duration wait = std::max(retry_after, backoff.Next());
  return SleepUnlessStopped(stop, wait) ? absl::OkStatus() : absl::CancelledError("Stopped");
}

absl::StatusOr<HubSnapshot> HubClient::Resolve(const HubModel& model, std::stop_token stop) {
  const std::string what = absl::StrCat("hf://", model.repository, "@", model.revision);
  const std::string url =
      absl::StrCat(options_.endpoint, "/api/models/", model.repository, "/revision/",
                   PercentEncode(model.revision, false), "?blobs=true");
  Backoff backoff(options_.backoff, std::random_device{}());
  for (int tries = 1;; ++tries) {
    absl::Duration retry_after;
    const absl::StatusOr<HttpResponse> response =
        Get(url, {.max_body_bytes = kMaxListingBytes, .stop = stop});
    absl::Status failure = response.status();
    if (response.ok() && response->ok()) {
      absl::StatusOr<HubSnapshot> snapshot = ParseSnapshot(response->body);
      if (snapshot.ok()) return snapshot;
      failure = absl::UnavailableError(
          absl::StrCat("model.uri: ", what, ": ", snapshot.status().message()));
    } else if (response.ok()) {
      failure = Refusal(*response, what);
      retry_after = RetryAfter(*response);
    }
    RETURN_IF_ERROR(AwaitNextTry(failure, retry_after, tries, backoff, stop));
  }
}

absl::Status HubClient::Fetch(const std::string& repository, const HubSnapshot& snapshot,
                              const HubSnapshot::File& file, int64_t offset,
                              const ArtifactCache::Sink& sink, std::stop_token stop) {
  const std::string what = absl::StrCat("hf://", repository, "@", snapshot.commit, ", ", file.name);
  const std::string url = absl::StrCat(options_.endpoint, "/", repository, "/resolve/",
                                       snapshot.commit, "/", PercentEncode(file.name, false));
  Backoff backoff(options_.backoff, std::random_device{}());
  int tries = 0;
  while (offset < file.size_bytes) {
    absl::Status sunk;
    // Of an answer that begins at the beginning though it was asked to begin later.
    int64_t skip = 0;
    HttpRequest request{.stop = stop};
    if (offset > 0) request.headers.emplace_back("range", absl::StrCat("bytes=", offset, "-"));
    request.on_headers = [&](const HttpResponse& response) -> absl::Status {
      skip = response.status == 206 ? 0 : offset;
      const std::string range = response.Header("content-range");
      int64_t total = -1;
      if (response.status == 206) {
        if (!absl::StartsWith(range, absl::StrCat("bytes ", offset, "-")) ||
            !absl::SimpleAtoi(range.substr(range.find('/') + 1), &total)) {
          return absl::UnavailableError(absl::StrCat("model.uri: ", what, ": was asked for bytes ",
                                                     "from ", offset, " on, and sent others"));
        }
      } else if (!absl::SimpleAtoi(response.Header("content-length"), &total)) {
        return absl::OkStatus();
      }
      if (total == file.size_bytes) return absl::OkStatus();
      return absl::DataLossError(absl::StrCat("model.uri: ", what, ": has ", total,
                                              " bytes, but the hub lists ", file.size_bytes));
    };
    request.sink = [&](absl::string_view data) -> absl::Status {
      const size_t skipped = std::min<size_t>(data.size(), static_cast<size_t>(skip));
      skip -= static_cast<int64_t>(skipped);
      data.remove_prefix(skipped);
      if (data.empty()) return absl::OkStatus();
      if (static_cast<int64_t>(data.size()) > file.size_bytes - offset) {
        sunk = absl::DataLossError(absl::StrCat("model.uri: ", what, ": is longer than the ",
                                                file.size_bytes, " bytes that the hub lists"));
        return sunk;
      }
      tries = 0;
      offset += static_cast<int64_t>(data.size());
      sunk = sink(data);
      return sunk;
    };
    absl::Duration retry_after;
    const absl::StatusOr<HttpResponse> response = Get(url, std::move(request));
    if (!sunk.ok()) return sunk;
    absl::Status failure = response.status();
    if (response.ok() && response->ok()) {
      if (offset == file.size_bytes) return absl::OkStatus();
      failure = absl::UnavailableError(absl::StrCat("model.uri: ", what, ": ended after ", offset,
                                                    " of ", file.size_bytes, " bytes"));
    } else if (response.ok()) {
      failure = Refusal(*response, what);
      retry_after = RetryAfter(*response);
    }
    if (failure.ok()) continue;
    RETURN_IF_ERROR(AwaitNextTry(failure, retry_after, ++tries, backoff, stop));
  }
  return absl::OkStatus();
}

}  // namespace qpruner::worker
