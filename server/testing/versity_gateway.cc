#include "server/testing/versity_gateway.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "net/aws_signature.h"

namespace qpruner::server {
namespace {

namespace fs = std::filesystem;

constexpr char kAccessKey[] = "qprunertest";
constexpr char kSecretKey[] = "only-for-tests-of-qpruner";

std::string FindProgram() {
  if (const char* chosen = getenv("QPRUNER_VERSITYGW")) return chosen;
  std::string cache;
  if (const char* own = getenv("QPRUNER_CACHE")) {
    cache = own;
  } else if (const char* xdg = getenv("XDG_CACHE_HOME")) {
    cache = absl::StrCat(xdg, "/qpruner");
  } else if (const char* home = getenv("HOME")) {
    cache = absl::StrCat(home, "/.cache/qpruner");
  }
  return absl::StrCat(cache, "/versitygw-v1.8.0/versitygw");
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

}  // namespace

VersityGateway* VersityGateway::Shared() {
  static const std::unique_ptr<VersityGateway> gateway = []() -> std::unique_ptr<VersityGateway> {
    auto started = Start();
    if (started.ok()) return *std::move(started);
    printf("SKIPPED: %s\n", std::string(started.status().message()).c_str());
    return nullptr;
  }();
  return gateway.get();
}

absl::StatusOr<std::unique_ptr<VersityGateway>> VersityGateway::Start() {
  std::unique_ptr<VersityGateway> gateway(new VersityGateway());
  gateway->program_ = FindProgram();
  if (!fs::exists(gateway->program_)) {
    return absl::NotFoundError(absl::StrCat(
        "no S3 server to test against: ", gateway->program_,
        " is not there; tests/s3/fetch_versitygw builds it (QPRUNER_VERSITYGW names another)"));
  }
  std::string folder = (fs::temp_directory_path() / "qpruner-s3-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return absl::InternalError("mkdtemp failed");
  gateway->folder_ = folder + "/buckets";
  fs::create_directories(gateway->folder_);
  fs::create_directories(folder + "/metadata");
  fs::create_directories(folder + "/versions");
  gateway->port_ = FreePort();
  RETURN_IF_ERROR(gateway->StartProcess());
  return gateway;
}

absl::Status VersityGateway::StartProcess() {
  const std::string above = fs::path(folder_).parent_path().string();
  ASSIGN_OR_RETURN(
      process_, ChildProcess::Spawn(
                    {.argv = {program_, "--access", kAccessKey, "--secret", kSecretKey, "--region",
                              "us-east-1", "--port", absl::StrCat("127.0.0.1:", port_), "--quiet",
                              "posix", "--sidecar", above + "/metadata", "--versioning-dir",
                              above + "/versions", folder_},
                     .parent_death_signal = SIGKILL,
                     .output_path = above + "/log"}));
  HttpClient http;
  for (const absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end;) {
    HttpRequest request;
    request.url = absl::StrCat("http://127.0.0.1:", port_, "/");
    if (http.Send(request).ok()) return absl::OkStatus();
    if (process_->Poll()) break;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::NotFoundError(absl::StrCat("versitygw does not start; see ", above, "/log"));
}

VersityGateway::~VersityGateway() {
  Kill();
  std::error_code ignored;
  fs::remove_all(fs::path(folder_).parent_path(), ignored);
}

void VersityGateway::Kill() { process_.reset(); }

std::string VersityGateway::NewBucket() {
  // A folder is a bucket.
  std::string bucket = absl::StrCat("bucket-", ++bucket_count_);
  fs::create_directories(absl::StrCat(folder_, "/", bucket));
  return bucket;
}

absl::Status VersityGateway::KeepVersions(const std::string& bucket) const {
  const S3Options s3 = options();
  const std::string body =
      "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
  const AwsRequest signing{.method = "PUT",
                           .host = absl::StrCat("127.0.0.1:", port_),
                           .path = "/" + bucket,
                           .query = {{"versioning", ""}},
                           .headers = {{"content-type", "application/octet-stream"}},
                           .payload_sha256 = Sha256Hex(body)};
  HttpRequest request{.method = "PUT",
                      .url = absl::StrCat(s3.endpoint, "/", bucket, "?versioning=")};
  request.headers = SignedHeaders(signing, s3.credentials, {.region = s3.region}, absl::Now());
  request.body = body;
  HttpClient http;
  ASSIGN_OR_RETURN(const HttpResponse response, http.Send(request));
  return response.ok() ? absl::OkStatus() : absl::InternalError(response.body);
}

int VersityGateway::OldVersionCount() const {
  int count = 0;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(folder_).parent_path() / "versions")) {
    count += entry.is_regular_file() ? 1 : 0;
  }
  return count;
}

S3Options VersityGateway::options() const {
  return {.endpoint = absl::StrCat("http://127.0.0.1:", port_),
          .credentials = {kAccessKey, kSecretKey, ""},
          .backoff = {.initial = absl::Milliseconds(1), .maximum = absl::Milliseconds(10)}};
}

}  // namespace qpruner::server
