#include "worker/engine/tasks/torch_guard.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace qpruner::engine {

absl::Status GuardTorch(absl::string_view what, const std::function<absl::Status()>& work) {
  try {
    const absl::Status status = work();
    // Only memory may say so, since it is tried again with less of it: a full disk stays full.
    return absl::IsResourceExhausted(status) ? absl::InternalError(status.message()) : status;
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": device memory ran out: ", error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    // The CPU allocator throws the base class.
    if (absl::StrContains(message, "DefaultCPUAllocator")) {
      return absl::ResourceExhaustedError(absl::StrCat(what, ": memory ran out: ", message));
    }
    return absl::InternalError(absl::StrCat(what, ": ", message));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": memory ran out"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, ": ", error.what()));
  }
}

}  // namespace qpruner::engine
