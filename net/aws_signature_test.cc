#include "net/aws_signature.h"

#include "base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "net/s3_client.h"
#include "net/s3_credentials.h"
#include "net/s3_xml.h"

namespace qpruner {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

absl::Time Utc(const char* text) {
  absl::Time time;
  std::string error;
  EXPECT_TRUE(absl::ParseTime(absl::RFC3339_full, text, &time, &error)) << error;
  return time;
}

std::string Authorization(const AwsRequest& request, const AwsCredentials& credentials,
                          const AwsScope& scope, absl::Time now) {
  for (const auto& [name, value] : SignedHeaders(request, credentials, scope, now)) {
    if (name == "authorization") return value;
  }
  return "";
}

// "get-vanilla" of the Signature Version 4 test suite.
TEST(AwsSignature, TestSuite) {
  const AwsCredentials credentials{"AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", ""};
  const AwsRequest request{.method = "GET",
                           .host = "example.amazonaws.com",
                           .path = "/",
                           .payload_sha256 = Sha256Hex("")};
  EXPECT_EQ(
      Authorization(request, credentials, {"us-east-1", "service"}, Utc("2015-08-30T12:36:00Z")),
      "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
      "SignedHeaders=host;x-amz-date, "
      "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
}

// The examples of "Signature Calculations for the Authorization Header" in the S3 API reference.
TEST(AwsSignature, ExamplesOfTheS3Reference) {
  const AwsCredentials credentials{"AKIAIOSFODNN7EXAMPLE",
                                   "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""};
  const AwsScope scope{"us-east-1", "s3"};
  const absl::Time now = Utc("2013-05-24T00:00:00Z");
  AwsRequest request{.method = "GET",
                     .host = "examplebucket.s3.amazonaws.com",
                     .path = "/test.txt",
                     .headers = {{"range", "bytes=0-9"}},
                     .payload_sha256 = Sha256Hex("")};
  EXPECT_THAT(Authorization(request, credentials, scope, now),
              EndsWith("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"));
  request = {.method = "GET",
             .host = "examplebucket.s3.amazonaws.com",
             .path = "/",
             .query = {{"lifecycle", ""}},
             .payload_sha256 = Sha256Hex("")};
  EXPECT_THAT(Authorization(request, credentials, scope, now),
              EndsWith("fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"));
  request.query = {{"prefix", "J"}, {"max-keys", "2"}};
  EXPECT_THAT(Authorization(request, credentials, scope, now),
              EndsWith("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
}

// The example of "Authenticating Requests: Using Query Parameters" in the S3 API reference.
TEST(AwsSignature, ExampleOfAPresignedUrl) {
  const AwsRequest request{.method = "GET",
                           .host = "examplebucket.s3.amazonaws.com",
                           .path = "/test.txt",
                           .payload_sha256 = kUnsignedPayload};
  EXPECT_EQ(PresignedQuery(request,
                           {"AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""},
                           {"us-east-1", "s3"}, Utc("2013-05-24T00:00:00Z"), absl::Seconds(86400)),
            "X-Amz-Algorithm=AWS4-HMAC-SHA256"
            "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
            "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
            "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404");
}

TEST(AwsSignature, APresignedQuerySignsItsHeadersAndToken) {
  AwsRequest request{.method = "PUT",
                     .host = "h",
                     .path = "/b/k",
                     .headers = {{"content-length", "5"}},
                     .payload_sha256 = kUnsignedPayload};
  const auto query = [&](const AwsCredentials& credentials) {
    return PresignedQuery(request, credentials, {"r"}, absl::UnixEpoch(), absl::Minutes(5));
  };
  const std::string of_five = query({"id", "secret", "to/ken"});
  EXPECT_THAT(of_five, HasSubstr("&X-Amz-SignedHeaders=content-length%3Bhost&"));
  EXPECT_THAT(of_five, HasSubstr("&X-Amz-Security-Token=to%2Fken&"));
  EXPECT_THAT(of_five, testing::Not(HasSubstr("secret")));
  EXPECT_THAT(query({"id", "secret", ""}), testing::Not(HasSubstr("Security-Token")));
  request.headers["content-length"] = "6";
  EXPECT_NE(query({"id", "secret", "to/ken"}), of_five);
}

TEST(AwsSignature, TemporaryCredentialsSendTheirToken) {
  const AwsRequest request{.method = "GET", .host = "h", .path = "/", .payload_sha256 = ""};
  const auto headers = SignedHeaders(request, {"id", "secret", "token"}, {"r"}, absl::UnixEpoch());
  EXPECT_THAT(headers, testing::Contains(testing::Pair("x-amz-security-token", "token")));
}

TEST(CanonicalQuery, IsSortedAndEncoded) {
  EXPECT_EQ(CanonicalQuery({{"uploads", ""}, {"prefix", "a b/c~+"}}),
            "prefix=a%20b%2Fc~%2B&uploads=");
}

TEST(AwsCredentials, AreReadFromTheDefaultSection) {
  const auto parsed = ParseAwsCredentials(
      "# ours\n[other]\naws_access_key_id = no\n[default]\naws_access_key_id=id\n"
      "aws_secret_access_key = a/b+c=\n\naws_session_token=t\n[more]\naws_access_key_id = no\n");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->access_key_id, "id");
  EXPECT_EQ(parsed->secret_access_key, "a/b+c=");
  EXPECT_EQ(parsed->session_token, "t");
  const absl::Status incomplete =
      ParseAwsCredentials("[default]\naws_secret_access_key = s3cr3t\n").status();
  EXPECT_TRUE(absl::IsInvalidArgument(incomplete));
  EXPECT_THAT(std::string(incomplete.message()), HasSubstr("aws_access_key_id"));
  EXPECT_THAT(std::string(incomplete.message()), testing::Not(HasSubstr("s3cr3t")));
}

TEST(AwsCredentials, AreTakenOutOfTheEnvironment) {
  setenv("AWS_ACCESS_KEY_ID", "id", 1);
  setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
  const auto loaded = LoadAwsCredentials("");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->access_key_id, "id");
  EXPECT_EQ(getenv("AWS_SECRET_ACCESS_KEY"), nullptr) << "children would inherit it";
  EXPECT_TRUE(absl::IsInvalidArgument(LoadAwsCredentials("").status()));
}

TEST(S3Xml, FindsElementsAndResolvesEntities) {
  const std::string xml =
      "<?xml version=\"1.0\"?><R><C><Key>a&amp;b&#x2F;c</Key></C><C><Key>d</Key></C><X/></R>";
  const auto found = XmlElements(xml, "C");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(XmlText(found[0], "Key"), "a&b/c");
  EXPECT_EQ(XmlText(found[1], "Key"), "d");
  EXPECT_EQ(XmlText(xml, "None"), "");
  EXPECT_TRUE(XmlElements("<C><C><C>", "C").empty());
}

TEST(S3Location, TakesABucketAndAPrefix) {
  EXPECT_EQ(S3Location::Parse("s3://my-bucket")->Key("objects/x"), "objects/x");
  EXPECT_EQ(S3Location::Parse("s3://my-bucket/")->Key("objects/x"), "objects/x");
  EXPECT_EQ(S3Location::Parse("s3://my-bucket/a/b/")->Key("objects/x"), "a/b/objects/x");
  for (const char* bad : {"", "s3:/bucket", "http://bucket", "s3://", "s3://No", "s3://ab",
                          "s3://bu/a", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket//",
                          "s3://bucket/a b", "s3://bucket/a?b", "s3://buc ket/a"}) {
    const absl::Status status = S3Location::Parse(bad).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
  }
}

}  // namespace
}  // namespace qpruner
