#include "worker/engine/tasks/torch_guard.h"

#include <ATen/ATen.h>

#include <new>
#include <stdexcept>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/engine_errors.h"
#include "proto/status_codec.h"

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

// A full disk is no reason to try with less memory.
TEST(TorchGuard, OfStatusesOnlyMemorysIsOfMemory) {
  EXPECT_EQ(GuardTorch("x", [] { return absl::ResourceExhaustedError("disk full"); }),
            absl::InternalError("disk full"));
  EXPECT_EQ(GuardTorch("x", [] { return OutOfMemoryError("small"); }), OutOfMemoryError("small"));
}

TEST(TorchGuard, TellsTheDevicesMemoryFromTheDevicesFailures) {
  const c10::SourceLocation here{"f", "file", 1};
  const auto text = [&](const char* message) {
    return StatusOfException("trial", c10::Error(here, message));
  };
  for (const absl::Status& memory :
       {StatusOfException("trial", c10::OutOfMemoryError(here, "CUDA out of memory. Tried ..")),
        StatusOfException("trial", c10::AcceleratorError(here, 2, "CUDA error: out of memory")),
        text("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        StatusOfException("trial", std::runtime_error("for_each: cudaErrorMemoryAllocation"))}) {
    EXPECT_EQ(memory.code(), absl::StatusCode::kResourceExhausted) << memory;
    EXPECT_EQ(ErrorReason(memory), kOutOfMemory);
  }
  for (const absl::Status& lost :
       {StatusOfException("trial", c10::AcceleratorError(here, 700, "an illegal memory access")),
        text("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(..)`"),
        text("CUDA error: device-side assert triggered"), text("CUDA driver error: unknown"),
        StatusOfException("trial", std::runtime_error("sort: cudaErrorIllegalAddress: .."))}) {
    EXPECT_EQ(lost.code(), absl::StatusCode::kInternal) << lost;
    EXPECT_EQ(ErrorReason(lost), kDeviceLost) << lost;
  }
  for (const absl::Status& other :
       {text("mat1 and mat2 shapes cannot be multiplied"),
        StatusOfException("trial", c10::LinAlgError(here, "cusolver error: did not converge")),
        StatusOfException("trial", std::runtime_error("anything"))}) {
    EXPECT_EQ(other.code(), absl::StatusCode::kInternal) << other;
    EXPECT_EQ(ErrorReason(other), "") << other;
  }
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
