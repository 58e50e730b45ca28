// Thread-sanitizer builds only: tells the sanitizer what Abseil's locks order.
//
// Debian's libabsl_synchronization.so is not instrumented, so its locks are invisible to the
// sanitizer and every access under an absl::Mutex looks like a race. These definitions take the
// place of the library's (the executable's symbols win), announce the ordering and call the
// originals. gRPC calls them too, which makes its own locks visible.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

namespace {

template <typename Function>
Function Original(const char* symbol) {
  void* found = dlsym(RTLD_NEXT, symbol);
  if (found == nullptr) {
    fprintf(stderr, "not in the Abseil that is linked: %s\n", symbol);
    abort();
  }
  return reinterpret_cast<Function>(found);
}

}  // namespace

// The mangled name of member `name` of `type` with parameters `parameters`.
#define QPRUNER_ABSL(type, name, parameters) "_ZN4absl7debian3" type name parameters

#define QPRUNER_MUTEX_LOCKS(method, mangled)                               \
  void Mutex::method() {                                                   \
    static const auto original =                                           \
        Original<void (*)(Mutex*)>(QPRUNER_ABSL("5Mutex", mangled, "Ev")); \
    original(this);                                                        \
    __tsan_acquire(this);                                                  \
  }
#define QPRUNER_MUTEX_UNLOCKS(method, mangled)                             \
  void Mutex::method() {                                                   \
    static const auto original =                                           \
        Original<void (*)(Mutex*)>(QPRUNER_ABSL("5Mutex", mangled, "Ev")); \
    __tsan_release(this);                                                  \
    original(this);                                                        \
  }

namespace absl {
ABSL_NAMESPACE_BEGIN

QPRUNER_MUTEX_LOCKS(Lock, "4Lock")
QPRUNER_MUTEX_LOCKS(ReaderLock, "10ReaderLock")
QPRUNER_MUTEX_UNLOCKS(Unlock, "6Unlock")
QPRUNER_MUTEX_UNLOCKS(ReaderUnlock, "12ReaderUnlock")

bool Mutex::TryLock() {
  static const auto original = Original<bool (*)(Mutex*)>(QPRUNER_ABSL("5Mutex", "7TryLock", "Ev"));
  const bool locked = original(this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Await(const Condition& condition) {
  static const auto original = Original<void (*)(Mutex*, const Condition&)>(
      QPRUNER_ABSL("5Mutex", "5Await", "ERKNS0_9ConditionE"));
  __tsan_release(this);
  original(this, condition);
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, absl::Duration timeout) {
  static const auto original = Original<bool (*)(Mutex*, const Condition&, absl::Duration)>(
      QPRUNER_ABSL("5Mutex", "16AwaitWithTimeout", "ERKNS0_9ConditionENS0_8DurationE"));
  __tsan_release(this);
  const bool met = original(this, condition, timeout);
  __tsan_acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, absl::Time deadline) {
  static const auto original = Original<bool (*)(Mutex*, const Condition&, absl::Time)>(
      QPRUNER_ABSL("5Mutex", "17AwaitWithDeadline", "ERKNS0_9ConditionENS0_4TimeE"));
  __tsan_release(this);
  const bool met = original(this, condition, deadline);
  __tsan_acquire(this);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  static const auto original =
      Original<void (*)(CondVar*, Mutex*)>(QPRUNER_ABSL("7CondVar", "4Wait", "EPNS0_5MutexE"));
  __tsan_release(mutex);
  original(this, mutex);
  __tsan_acquire(mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, absl::Time deadline) {
  static const auto original = Original<bool (*)(CondVar*, Mutex*, absl::Time)>(
      QPRUNER_ABSL("7CondVar", "16WaitWithDeadline", "EPNS0_5MutexENS0_4TimeE"));
  __tsan_release(mutex);
  const bool late = original(this, mutex, deadline);
  __tsan_acquire(mutex);
  return late;
}

bool CondVar::WaitWithTimeout(Mutex* mutex, absl::Duration timeout) {
  static const auto original = Original<bool (*)(CondVar*, Mutex*, absl::Duration)>(
      QPRUNER_ABSL("7CondVar", "15WaitWithTimeout", "EPNS0_5MutexENS0_8DurationE"));
  __tsan_release(mutex);
  const bool late = original(this, mutex, timeout);
  __tsan_acquire(mutex);
  return late;
}

void Notification::Notify() {
  static const auto original =
      Original<void (*)(Notification*)>(QPRUNER_ABSL("12Notification", "6Notify", "Ev"));
  __tsan_release(this);
  original(this);
}

void Notification::WaitForNotification() const {
  static const auto original = Original<void (*)(const Notification*)>(
      "_ZNK4absl7debian312Notification19WaitForNotificationEv");
  original(this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(absl::Duration timeout) const {
  static const auto original = Original<bool (*)(const Notification*, absl::Duration)>(
      "_ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE");
  const bool notified = original(this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
