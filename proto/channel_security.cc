#include "proto/channel_security.h"

#include <sys/stat.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"
#include "grpcpp/support/client_interceptor.h"
#include "proto/keepalive.h"

namespace qpruner {
namespace {

using grpc::experimental::ClientInterceptorFactoryInterface;
using grpc::experimental::ClientRpcInfo;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;

constexpr int64_t kMaxPemBytes = 1 << 20;
constexpr int64_t kMaxTokenBytes = 400;

absl::StatusOr<std::string> ReadNamed(const char* flag, const std::string& path, int64_t limit) {
  absl::StatusOr<std::string> content = ReadFile(path, limit);
  if (content.ok()) return content;
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": ", std::string(content.status().message())));
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, ReadNamed("--token-file", path, kMaxTokenBytes));
  const std::string token(absl::StripAsciiWhitespace(content));
  for (const char c : token) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat("--token-file: ", path, " must hold one token of printable characters"));
    }
  }
  if (token.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--token-file: ", path, " is empty"));
  }
  return token;
}

// The token of a file that is replaced when the token is rotated.
class TokenSource {
 public:
  TokenSource(std::string path, std::string token)
      : path_(std::move(path)), token_(std::move(token)), mark_(Mark()) {}

  std::string Get() {
    absl::MutexLock lock(&mutex_);
    // A stat costs a microsecond, a call a hundred.
    if (const Stamp now = Mark(); now != mark_) {
      mark_ = now;
      // What cannot be read now is on its way: the old token may still do.
      if (absl::StatusOr<std::string> token = ReadToken(path_); token.ok()) token_ = *token;
    }
    return token_;
  }

 private:
  using Stamp = std::vector<int64_t>;
  Stamp Mark() const {
    struct stat info {};
    if (stat(path_.c_str(), &info) != 0) return {};
    return {static_cast<int64_t>(info.st_ino), info.st_size, info.st_mtim.tv_sec,
            info.st_mtim.tv_nsec};
  }

  const std::string path_;
  absl::Mutex mutex_;
  std::string token_ ABSL_GUARDED_BY(mutex_);
  Stamp mark_ ABSL_GUARDED_BY(mutex_);
};

// gRPC's own call credentials refuse to travel over plain connections, unix sockets among them.
class TokenInterceptor final : public Interceptor {
 public:
  explicit TokenInterceptor(std::shared_ptr<TokenSource> tokens) : tokens_(std::move(tokens)) {}
  void Intercept(InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization",
                                                 absl::StrCat("Bearer ", tokens_->Get()));
    }
    methods->Proceed();
  }

 private:
  const std::shared_ptr<TokenSource> tokens_;
};

class TokenInterceptorFactory final : public ClientInterceptorFactoryInterface {
 public:
  explicit TokenInterceptorFactory(std::shared_ptr<TokenSource> tokens)
      : tokens_(std::move(tokens)) {}
  Interceptor* CreateClientInterceptor(ClientRpcInfo*) override {
    return new TokenInterceptor(tokens_);
  }

 private:
  const std::shared_ptr<TokenSource> tokens_;
};

// How often gRPC looks whether certificates have changed.
constexpr unsigned kReloadSeconds = 5;

// What `security` comes to, read from its files.
struct Secrets {
  bool tls = false;
  std::optional<std::string> token;
};

absl::Status CheckPem(const char* flag, const std::string& path, absl::string_view what) {
  ASSIGN_OR_RETURN(const std::string content, ReadNamed(flag, path, kMaxPemBytes));
  if (absl::StrContains(content, "-----BEGIN ") && absl::StrContains(content, what)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, " holds no PEM ", what));
}

absl::StatusOr<Secrets> ReadSecrets(const std::string& address, const ChannelSecurity& security) {
  Secrets secrets;
  if (security.certificate.empty() != security.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key go together");
  }
  if (security.ca.empty() && !security.certificate.empty()) {
    return absl::InvalidArgumentError("--tls-cert needs --tls-ca, the server's authority");
  }
  if (!security.ca.empty()) {
    secrets.tls = true;
    RETURN_IF_ERROR(CheckPem("--tls-ca", security.ca, "CERTIFICATE"));
    if (!security.certificate.empty()) {
      RETURN_IF_ERROR(CheckPem("--tls-cert", security.certificate, "CERTIFICATE"));
      RETURN_IF_ERROR(CheckPem("--tls-key", security.key, "PRIVATE KEY"));
    }
  }
  if (!security.token_file.empty()) {
    if (!secrets.tls && !security.insecure && !IsLocalAddress(address)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the token would travel to ", address,
                       " unencrypted: name the server's authority with --tls-ca, or pass "
                       "--insecure if the network is private"));
    }
    ASSIGN_OR_RETURN(secrets.token, ReadToken(security.token_file));
  }
  return secrets;
}

std::shared_ptr<grpc::ChannelCredentials> ClientTls(const ChannelSecurity& security) {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          security.key, security.certificate, security.ca, kReloadSeconds));
  options.watch_root_certs();
  if (!security.certificate.empty()) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

bool IsLocalAddress(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) return true;
  absl::string_view host = address;
  host = host.substr(0, host.rfind(':'));
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");
  // All of 127.0.0.0/8, but not a name that only begins so.
  return host == "localhost" || host == "::1" ||
         (absl::StartsWith(host, "127.") &&
          host.find_first_not_of("0123456789.") == absl::string_view::npos);
}

absl::Status CheckChannelSecurity(const std::string& address, const ChannelSecurity& security) {
  return ReadSecrets(address, security).status();
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenSecureChannel(const std::string& address,
                                                                 const ChannelSecurity& security,
                                                                 grpc::ChannelArguments arguments) {
  ASSIGN_OR_RETURN(const Secrets secrets, ReadSecrets(address, security));
  // A proxy of the environment is for the web, not for a server that was named.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  SetKeepalive(arguments);
  std::vector<std::unique_ptr<ClientInterceptorFactoryInterface>> interceptors;
  if (secrets.token) {
    interceptors.push_back(std::make_unique<TokenInterceptorFactory>(
        std::make_shared<TokenSource>(security.token_file, *secrets.token)));
  }
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      address, secrets.tls ? ClientTls(security) : grpc::InsecureChannelCredentials(), arguments,
      std::move(interceptors));
}

}  // namespace qpruner
