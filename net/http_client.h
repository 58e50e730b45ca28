// HTTP and HTTPS requests, one at a time for each caller, with bounds on time and size.
//
// No redirect is followed and no status is an error here: what they mean is for the caller to say,
// who knows where a secret in a header may go.
#ifndef QPRUNER_NET_HTTP_CLIENT_H_
#define QPRUNER_NET_HTTP_CLIENT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace qpruner {

struct HttpResponse {
  int status = 0;
  // By lower-case name; the last of several of one name.
  std::map<std::string, std::string> headers;
  // Without a sink, or of a status beyond 2xx.
  std::string body;

  bool ok() const { return status >= 200 && status < 300; }
  // Empty if it is not there.
  std::string Header(const std::string& lower_case_name) const;
};

struct HttpRequest {
  std::string method = "GET";
  // http:// or https://, percent-encoded.
  std::string url;
  std::vector<std::pair<std::string, std::string>> headers;
  // Of PUT and POST. Must live until Send returns.
  absl::string_view body;
  // The body of a PUT instead, where it is too large for memory: `source_bytes` in all. Fills the
  // buffer from its beginning and says how far; an error, or none where there should be more, ends
  // the request and is returned.
  std::function<absl::StatusOr<size_t>(char* buffer, size_t size)> source;
  int64_t source_bytes = 0;

  // Asked once the headers of a 2xx answer are there, before its body; an error ends the request
  // and is returned.
  std::function<absl::Status(const HttpResponse& response)> on_headers;
  // Gets the body of a 2xx answer, in order; an error ends the request and is returned.
  std::function<absl::Status(absl::string_view data)> sink;
  // Of a body without a sink. Beyond: RESOURCE_EXHAUSTED.
  int64_t max_body_bytes = int64_t{8} << 20;

  absl::Duration connect_timeout = absl::Seconds(10);
  // Slower than 1 KiB/s, either way, for so long: UNAVAILABLE. Whole seconds; after a quick
  // transfer it takes some seconds longer to notice.
  absl::Duration idle_timeout = absl::Seconds(30);
  // Of all of it: UNAVAILABLE.
  absl::Duration total_timeout = absl::InfiniteDuration();
  // Ends it with CANCELLED, within a second.
  std::stop_token stop;
};

// Thread-safe. Connections are kept and used again.
class HttpClient {
 public:
  HttpClient();
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Blocks. UNAVAILABLE: no connection, no answer, or the answer broke off; the message names the
  // host, never the headers or the query. Other codes: as the request's parts say.
  absl::StatusOr<HttpResponse> Send(const HttpRequest& request);

 private:
  struct Handles;
  const std::unique_ptr<Handles> handles_;
};

// For paths: everything but A-Z a-z 0-9 - . _ ~ and, if `keep_slashes`, / is %XX.
std::string PercentEncode(absl::string_view text, bool keep_slashes);

// scheme://host[:port] of a URL; empty if it has none.
std::string UrlOrigin(absl::string_view url);

}  // namespace qpruner

#endif  // QPRUNER_NET_HTTP_CLIENT_H_
