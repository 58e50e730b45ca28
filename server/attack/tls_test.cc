// Who may listen in, and who is let in, where there are certificates.
#include <sys/stat.h>

#include <string>

#include "base/durable_file.h"
#include "gmock/gmock.h"
#include "server/attack/attack_test.h"
#include "server/testing/test_certificates.h"

namespace qpruner::server {
namespace {

using ::testing::HasSubstr;

class TlsTest : public AttackTest {
 protected:
  std::string Write(const std::string& name, const std::string& content) {
    const std::string path = folder_.path() + "/" + name;
    EXPECT_TRUE(WriteFileDurably(path, content, 0600).ok());
    return path;
  }
  ServerOptions TlsOptions(const PemPair& certificate) {
    ServerOptions options;
    options.tls.certificate = Write("server.pem", certificate.certificate);
    options.tls.key = Write("server.key", certificate.key);
    return options;
  }
  // A call over a connection of its own.
  absl::Status Try(const ChannelSecurity& security) {
    const auto channel = OpenOwnChannel(security);
    if (!channel.ok()) return channel.status();
    const auto stub = v1::JobService::NewStub(*channel);
    v1::ListCapabilitiesResponse response;
    return Call(*stub, &v1::JobService::Stub::ListCapabilities, v1::ListCapabilitiesRequest(),
                &response);
  }

  const PemPair authority_ = MakeTestAuthority("test authority");
  const PemPair foreign_ = MakeTestAuthority("foreign authority");
};

TEST_F(TlsTest, OnlyItsAuthorityOpensTheDoor) {
  Start(TlsOptions(MakeTestCertificate("server", authority_)));
  const std::string ca = Write("ca.pem", authority_.certificate);
  EXPECT_TRUE(Try({.ca = ca}).ok());
  EXPECT_TRUE(absl::IsUnavailable(Try({}))) << "plain text";
  EXPECT_TRUE(absl::IsUnavailable(Try({.ca = Write("foreign.pem", foreign_.certificate)})));
}

TEST_F(TlsTest, MutualTlsAsksForACertificateOfTheClientAuthority) {
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("client-ca.pem", authority_.certificate);
  Start(std::move(options));
  const std::string ca = Write("ca.pem", authority_.certificate);
  const PemPair good = MakeTestCertificate("client", authority_);
  const PemPair bad = MakeTestCertificate("client", foreign_);
  EXPECT_TRUE(Try({.ca = ca,
                   .certificate = Write("good.pem", good.certificate),
                   .key = Write("good.key", good.key)})
                  .ok());
  EXPECT_FALSE(Try({.ca = ca}).ok());
  EXPECT_FALSE(Try({.ca = ca,
                    .certificate = Write("bad.pem", bad.certificate),
                    .key = Write("bad.key", bad.key)})
                   .ok());
}

TEST_F(TlsTest, ARenewedCertificateIsTakenUp) {
  Start(TlsOptions(MakeTestCertificate("server", authority_)));
  const ChannelSecurity renewed{.ca = Write("renewed-ca.pem", foreign_.certificate)};
  ASSERT_FALSE(Try(renewed).ok());
  const PemPair next = MakeTestCertificate("server", foreign_);
  Write("server.key", next.key);
  Write("server.pem", next.certificate);
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!Try(renewed).ok()) ASSERT_LT(absl::Now(), deadline) << "it was not read again";
}

TEST_F(TlsTest, AClientsRenewedCertificateIsTakenUp) {
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("client-ca.pem", authority_.certificate);
  Start(std::move(options));
  const auto write_identity = [&](const PemPair& pair) {
    return ChannelSecurity{.ca = Write("ca.pem", authority_.certificate),
                           .certificate = Write("client.pem", pair.certificate),
                           .key = Write("client.key", pair.key)};
  };
  // One channel all the time, as a worker has it.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  const auto channel = OpenSecureChannel(
      server_->address(), write_identity(MakeTestCertificate("client", foreign_)), arguments);
  ASSERT_TRUE(channel.ok()) << channel.status();
  const auto stub = v1::JobService::NewStub(*channel);
  const auto list = [&] {
    v1::ListCapabilitiesResponse response;
    return Call(*stub, &v1::JobService::Stub::ListCapabilities, v1::ListCapabilitiesRequest(),
                &response);
  };
  ASSERT_FALSE(list().ok()) << "another authority's";
  write_identity(MakeTestCertificate("client", authority_));
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!list().ok()) ASSERT_LT(absl::Now(), deadline) << "it was not read again";
}

TEST_F(TlsTest, AClientsBadFilesAreNamed) {
  const std::string ca = Write("ca.pem", authority_.certificate);
  const PemPair good = MakeTestCertificate("client", authority_);
  const std::string certificate = Write("client.pem", good.certificate);
  const auto refusal = [](const ChannelSecurity& security) {
    const absl::Status status = OpenSecureChannel("127.0.0.1:1", security, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refusal({.ca = Write("x", "no certificate")}), HasSubstr("--tls-ca"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = certificate}), HasSubstr("go together"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = certificate, .key = certificate}),
              HasSubstr("--tls-key"));
  EXPECT_THAT(refusal({.ca = ca, .certificate = folder_.path() + "/absent", .key = certificate}),
              HasSubstr("--tls-cert"));
}

TEST_F(TlsTest, BadFilesAreNamedAtTheStart) {
  const auto refusal = [&](const ServerOptions& options) {
    ServerOptions full = options;
    full.listen = "127.0.0.1:0";
    full.data_dir = folder_.path() + "/data";
    full.metrics_listen = "off";
    return std::string(
        Server::Start(std::move(full), RealClock(), SystemIdGenerator()).status().message());
  };
  ServerOptions options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.key = Write("other.key", MakeTestCertificate("x", authority_).key);
  EXPECT_THAT(refusal(options), HasSubstr("--tls-key"));
  options.tls.key = "";
  EXPECT_THAT(refusal(options), HasSubstr("--tls-cert and --tls-key go together"));
  options = TlsOptions(MakeTestCertificate("server", authority_));
  options.tls.client_ca = Write("empty.pem", "");
  EXPECT_THAT(refusal(options), HasSubstr("--tls-client-ca"));
  options = {};
  options.token_file = folder_.path() + "/absent.json";
  EXPECT_THAT(refusal(options), HasSubstr("absent.json"));
  options.token_file = Write("tokens.json", "{}");
  ASSERT_EQ(chmod(options.token_file.c_str(), 0666), 0);
  EXPECT_THAT(refusal(options), HasSubstr("others than its owner may write it"));
}

}  // namespace
}  // namespace qpruner::server
