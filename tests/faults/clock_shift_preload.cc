// LD_PRELOAD: moves the wall clock that a process sees, without touching the machine's.
//
// QPRUNER_CLOCK_SHIFT_FILE names a file of 8 bytes, nanoseconds to add, which may change at any
// time. As when a machine's clock is set, waits until a point of wall time (futexes with
// FUTEX_CLOCK_REALTIME: those of Abseil, and so of gRPC) end early or late, and waits on the
// monotonic clock do not change.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// How late a wait notices that the clock was set.
constexpr int64_t kSlice = 20'000'000;

using Syscall = long (*)(long, ...);

Syscall RealSyscall() {
  static const Syscall real = reinterpret_cast<Syscall>(dlsym(RTLD_NEXT, "syscall"));
  return real;
}

// Nanoseconds to add; 0 without a file.
int64_t Shift() {
  static const volatile int64_t* const shift = [] {
    static const int64_t none = 0;
    const char* path = getenv("QPRUNER_CLOCK_SHIFT_FILE");
    if (path == nullptr) return &none;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return &none;
    void* mapped = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    return mapped == MAP_FAILED ? &none : static_cast<const int64_t*>(mapped);
  }();
  return *shift;
}

int64_t ToNanoseconds(const timespec& time) { return time.tv_sec * kSecond + time.tv_nsec; }

timespec ToTimespec(int64_t nanoseconds) {
  timespec time{};
  time.tv_sec = nanoseconds / kSecond;
  time.tv_nsec = nanoseconds % kSecond;
  return time;
}

int64_t Now(clockid_t clock) {
  timespec now{};
  RealSyscall()(SYS_clock_gettime, clock, &now);
  return ToNanoseconds(now);
}

bool IsWallClock(clockid_t clock) {
  return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}

int GetTime(clockid_t clock, timespec* time) {
  const long result = RealSyscall()(SYS_clock_gettime, clock, time);
  if (result == 0 && time != nullptr && IsWallClock(clock)) {
    *time = ToTimespec(ToNanoseconds(*time) + Shift());
  }
  return static_cast<int>(result);
}

// A wait until a point of the shifted wall time, in slices of monotonic time.
long FutexWait(void* address, int operation, int value, const timespec& until, int bits) {
  const int64_t deadline = ToNanoseconds(until);
  while (true) {
    const int64_t left = deadline - (Now(CLOCK_REALTIME) + Shift());
    if (left <= 0) {
      errno = ETIMEDOUT;
      return -1;
    }
    const timespec slice = ToTimespec(Now(CLOCK_MONOTONIC) + std::min(left, kSlice));
    const long result = RealSyscall()(SYS_futex, address, operation & ~FUTEX_CLOCK_REALTIME, value,
                                      &slice, nullptr, bits);
    if (result == 0 || errno != ETIMEDOUT) return result;
  }
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* time) { return GetTime(clock, time); }

int gettimeofday(timeval* time, void*) {
  timespec now{};
  GetTime(CLOCK_REALTIME, &now);
  time->tv_sec = now.tv_sec;
  time->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t* seconds) {
  timespec now{};
  GetTime(CLOCK_REALTIME, &now);
  if (seconds != nullptr) *seconds = now.tv_sec;
  return now.tv_sec;
}

long syscall(long number, ...) {
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  if (number == SYS_clock_gettime) {
    return GetTime(static_cast<clockid_t>(arguments[0]), reinterpret_cast<timespec*>(arguments[1]));
  }
  const int operation = static_cast<int>(arguments[1]);
  if (number == SYS_futex && (operation & FUTEX_CLOCK_REALTIME) != 0 &&
      (operation & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && arguments[3] != 0) {
    return FutexWait(
        reinterpret_cast<void*>(arguments[0]), operation, static_cast<int>(arguments[2]),
        *reinterpret_cast<const timespec*>(arguments[3]), static_cast<int>(arguments[5]));
  }
  return RealSyscall()(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                       arguments[5]);
}

}  // extern "C"
