// Waits with a time limit last that long, whatever becomes of the wall clock. Linked into programs
// that must outlive a clock that is set; it has no header.
//
// Abseil 20220623 turns every limit into a point of wall time and waits for that with
// FUTEX_CLOCK_REALTIME, and so do gRPC's timers, which use it: when the clock is set back by an
// hour, whatever waits then waits an hour longer. A worker would not reconnect, a lease not end.
// (Later versions of Abseil wait on the monotonic clock.) This `syscall` stands before libc's and
// turns such a wait into the same wait on the monotonic clock; everything else it passes on.
#include <dlfcn.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>

namespace {

constexpr int64_t kSecond = 1'000'000'000;

int64_t Now(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

// The moment of the monotonic clock that is as far away as `wall` is now.
timespec ToMonotonic(const timespec& wall) {
  constexpr int64_t kLongest = int64_t{1} << 61;
  const int64_t seconds = std::min<int64_t>(wall.tv_sec, kLongest / kSecond);
  const int64_t left = std::max<int64_t>(seconds * kSecond + wall.tv_nsec - Now(CLOCK_REALTIME), 0);
  const int64_t until = Now(CLOCK_MONOTONIC) + left;
  timespec monotonic{};
  monotonic.tv_sec = until / kSecond;
  monotonic.tv_nsec = until % kSecond;
  return monotonic;
}

}  // namespace

extern "C" long syscall(long number, ...) {
  using Syscall = long (*)(long, ...);
  static const Syscall next = reinterpret_cast<Syscall>(dlsym(RTLD_NEXT, "syscall"));
  va_list list;
  va_start(list, number);
  // Six at most, and reading too many does no harm: they are registers or the caller's stack.
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  timespec until{};
  const int operation = static_cast<int>(arguments[1]);
  if (number == SYS_futex && (operation & FUTEX_CLOCK_REALTIME) != 0 &&
      (operation & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && arguments[3] != 0) {
    until = ToMonotonic(*reinterpret_cast<const timespec*>(arguments[3]));
    arguments[1] = operation & ~FUTEX_CLOCK_REALTIME;
    arguments[3] = reinterpret_cast<long>(&until);
  }
  return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
              arguments[5]);
}
