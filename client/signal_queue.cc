#include "client/signal_queue.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace qpruner {
namespace {

sigset_t Watched() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  return set;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SignalQueue>> SignalQueue::Create() {
  const sigset_t set = Watched();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) return absl::ErrnoToStatus(errno, "Cannot watch signals");
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) {
    const int error = errno;
    close(signals);
    return absl::ErrnoToStatus(error, "Cannot create an event descriptor");
  }
  return std::unique_ptr<SignalQueue>(new SignalQueue(signals, wake));
}

SignalQueue::~SignalQueue() {
  close(signals_);
  close(wake_);
  const sigset_t set = Watched();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

int SignalQueue::Next(absl::Duration timeout) {
  pollfd watched[2] = {{signals_, POLLIN, 0}, {wake_, POLLIN, 0}};
  if (poll(watched, 2, static_cast<int>(absl::ToInt64Milliseconds(timeout))) <= 0) return 0;
  if (watched[1].revents != 0) {
    uint64_t count;
    [[maybe_unused]] const ssize_t ignored = read(wake_, &count, sizeof count);
  }
  signalfd_siginfo info;
  if (watched[0].revents == 0 || read(signals_, &info, sizeof info) != sizeof info) return 0;
  return static_cast<int>(info.ssi_signo);
}

void SignalQueue::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t ignored = write(wake_, &one, sizeof one);
}

}  // namespace qpruner
