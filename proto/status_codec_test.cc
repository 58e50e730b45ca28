#include "proto/status_codec.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"

namespace qpruner {
namespace {

TEST(StatusCodec, VeryManyBadFieldsFitIntoTheHeadersOfACall) {
  std::vector<FieldViolation> violations;
  for (int i = 0; i < 500; ++i) {
    violations.push_back({absl::StrCat("job.spec.f", i), "must be from 0 to 1, is \xC3\xA9"});
  }
  violations[1].description = std::string(10'000, 'x');
  const grpc::Status status = ToGrpcStatus(BadRequestError(violations));
  // gRPC's bound is 8 KiB: the message escaped, the details in base64.
  size_t escaped = 0;
  for (const char c : status.error_message()) escaped += c < ' ' || c > '~' ? 3 : 1;
  EXPECT_LT(escaped + status.error_details().size() * 4 / 3, 8000u);
  const std::vector<FieldViolation> told = FieldViolations(FromGrpcStatus(status));
  ASSERT_GT(told.size(), 5u);
  EXPECT_EQ(told[0].field, "job.spec.f0");
  EXPECT_EQ(told.back().field, "");
  EXPECT_EQ(told.back().description, absl::StrCat("and ", 501 - told.size(), " more"));
}

TEST(StatusCodec, FieldViolationsSurviveTheWire) {
  const absl::Status sent = BadRequestError(
      {{"spec.pruning.ratio", "must be in [0, 1), is 1.5"}, {"spec.model.uri", "is required"}});
  const absl::Status received = FromGrpcStatus(ToGrpcStatus(sent));
  EXPECT_EQ(received, sent);
  EXPECT_EQ(ErrorReason(received), "INVALID_FIELDS");
  ASSERT_EQ(FieldViolations(received).size(), 2);
  EXPECT_EQ(FieldViolations(received)[1].field, "spec.model.uri");
}

TEST(StatusCodec, EveryErrorLeavesWithErrorInfo) {
  EXPECT_EQ(ErrorReason(FromRpcStatus(ToRpcStatus(absl::NotFoundError("no such job")))),
            "NOT_FOUND");
}

// Or protobuf would write it, and no one could read it.
TEST(StatusCodec, WhatIsNotUtf8IsReplaced) {
  const absl::Status received =
      FromGrpcStatus(ToGrpcStatus(BadRequestError({{"labels", "is \"\xC3\""}})));
  ASSERT_EQ(FieldViolations(received).size(), 1);
  EXPECT_EQ(FieldViolations(received)[0].description, "is \"\xEF\xBF\xBD\"");
  google::rpc::Status read;
  ASSERT_TRUE(
      read.ParseFromString(ToRpcStatus(absl::InternalError("/tmp/\xFF")).SerializeAsString()));
  EXPECT_EQ(read.message(), "/tmp/\xEF\xBF\xBD");
}

}  // namespace
}  // namespace qpruner
