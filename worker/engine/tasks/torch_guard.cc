#include "worker/engine/tasks/torch_guard.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <new>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/engine_errors.h"
#include "proto/status_codec.h"

namespace qpruner::engine {
namespace {

constexpr int kCudaErrorMemoryAllocation = 2;

template <typename Type>
const Type* As(const std::exception& error) {
  return dynamic_cast<const Type*>(&error);
}

bool ContainsAny(absl::string_view text, std::initializer_list<absl::string_view> parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](absl::string_view part) { return absl::StrContains(text, part); });
}

bool IsOfMemory(const std::exception& error, absl::string_view text) {
  if (As<std::bad_alloc>(error) != nullptr || As<c10::OutOfMemoryError>(error) != nullptr) {
    return true;
  }
  const auto* accelerator = As<c10::AcceleratorError>(error);
  if (accelerator != nullptr && accelerator->get_error_code() == kCudaErrorMemoryAllocation) {
    return true;
  }
  // The host's allocator, the CUDA runtime's own allocations, those of cuBLAS and its like, Thrust.
  return ContainsAny(text, {"DefaultCPUAllocator", "CUDA error: out of memory",
                            "_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation"});
}

bool IsOfDevice(const std::exception& error, absl::string_view text) {
  // An algorithm that did not converge, on any device.
  if (As<c10::LinAlgError>(error) != nullptr) return false;
  return As<c10::AcceleratorError>(error) != nullptr ||
         ContainsAny(text, {"CUDA error", "CUDA driver error", "cusolver error", "cuDNN error",
                            "cudaError"});
}

}  // namespace

absl::Status OutOfMemoryError(absl::string_view message) {
  return WithErrorInfo(absl::ResourceExhaustedError(message), kOutOfMemory);
}

absl::Status StatusOfException(absl::string_view what, const std::exception& error) {
  const auto* torch = As<c10::Error>(error);
  const std::string text = torch != nullptr ? torch->what_without_backtrace() : error.what();
  if (IsOfMemory(error, text)) {
    return OutOfMemoryError(absl::StrCat(what, ": memory ran out: ", text));
  }
  const absl::Status status = absl::InternalError(absl::StrCat(what, ": ", text));
  return IsOfDevice(error, text) ? WithErrorInfo(status, kDeviceLost) : status;
}

absl::Status GuardTorch(absl::string_view what, const std::function<absl::Status()>& work) {
  try {
    const absl::Status status = work();
    // Only memory may say so, since it is tried again with less of it: a full disk stays full.
    const bool other = absl::IsResourceExhausted(status) && ErrorReason(status) != kOutOfMemory;
    return other ? absl::InternalError(status.message()) : status;
  } catch (const std::exception& error) {
    return StatusOfException(what, error);
  }
}

}  // namespace qpruner::engine
