#include "worker/engine/tasks/torch_guard.h"

#include <ATen/ATen.h>

#include <new>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

using ::testing::HasSubstr;

TEST(TorchGuard, StatusesPassThrough) {
  EXPECT_TRUE(GuardTorch("x", [] { return absl::OkStatus(); }).ok());
  EXPECT_EQ(GuardTorch("x", [] { return absl::DataLossError("lost"); }),
            absl::DataLossError("lost"));
}

TEST(TorchGuard, MemoryThatRanOutIsTold) {
  EXPECT_EQ(GuardTorch("x", []() -> absl::Status { throw std::bad_alloc(); }).code(),
            absl::StatusCode::kResourceExhausted);
  // More than any machine's address space.
  const absl::Status status = GuardTorch("trial", [] {
    at::empty({int64_t{1} << 52}, at::kFloat);
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("trial: memory ran out"));
}

TEST(TorchGuard, OtherExceptionsAreInternal) {
  const absl::Status status = GuardTorch("trial", [] {
    at::ones({2, 3}).matmul(at::ones({2, 3}));
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
}

}  // namespace
}  // namespace qpruner::engine
