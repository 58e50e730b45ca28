#include "proto/status_codec.h"

#include "gtest/gtest.h"
#include "proto/grpc_status.h"

namespace qpruner {
namespace {

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
