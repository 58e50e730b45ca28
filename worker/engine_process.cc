#include "worker/engine_process.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "proto/engine_errors.h"
#include "proto/status_codec.h"

namespace qpruner::worker {

using internal::v1::EngineReply;
using internal::v1::EngineRequest;
using internal::v1::TaskResult;

namespace {

// What an engine may know of this process's environment: how to find libraries and devices, how
// many threads to run, how to write text. Not tokens, keys and passwords, wherever they may be.
constexpr absl::string_view kPassedOn[] = {"PATH=",         "HOME=",
                                           "LANG=",         "LC_",
                                           "TZ=",           "LD_LIBRARY_PATH=",
                                           "OMP_",          "KMP_",
                                           "GOMP_",         "MKL_",
                                           "DNNL_",         "ATEN",
                                           "TORCH",         "PYTORCH_",
                                           "CUDA_",         "NVIDIA_",
                                           "MALLOC_",       "GLIBC_TUNABLES=",
                                           "ASAN_OPTIONS=", "UBSAN_OPTIONS=",
                                           "TSAN_OPTIONS=", "LSAN_OPTIONS="};

std::vector<std::string> EngineEnvironment(const std::string& scratch_dir) {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const absl::string_view variable = *entry;
    if (std::any_of(std::begin(kPassedOn), std::end(kPassedOn),
                    [&](absl::string_view prefix) { return absl::StartsWith(variable, prefix); })) {
      environment.emplace_back(variable);
    }
  }
  if (!scratch_dir.empty()) environment.push_back(absl::StrCat("TMPDIR=", scratch_dir));
  // OpenMP's threads sleep while they wait: spinning ones starve the others wherever the cores are
  // shared. What this process was started with comes first in the list and wins.
  environment.emplace_back("OMP_WAIT_POLICY=passive");
  return environment;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineProcess>> EngineProcess::Start(Options options) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
    return absl::ErrnoToStatus(errno, "Cannot create a socket pair");
  }
  auto child = ChildProcess::Spawn({.argv = options.argv,
                                    .inherited_fds = {sockets[1]},
                                    .parent_death_signal = SIGKILL,
                                    .environment = EngineEnvironment(options.scratch_dir)});
  close(sockets[1]);
  if (!child.ok()) {
    close(sockets[0]);
    return child.status();
  }
  std::unique_ptr<EngineProcess> engine(
      new EngineProcess(std::move(options), *std::move(child), sockets[0]));
  EngineReply reply;
  RETURN_IF_ERROR(engine->ReadReply(reply, engine->options_.start_limit));
  if (!reply.has_hello()) {
    engine->Kill();
    return absl::UnavailableError("Engine did not say hello first: is it of another version?");
  }
  engine->hello_ = reply.hello();
  return engine;
}

EngineProcess::EngineProcess(Options options, std::unique_ptr<ChildProcess> child, int fd)
    : options_(std::move(options)),
      pid_(child->pid()),
      stream_(fd, options_.silence_limit),
      child_(std::move(child)) {}

EngineProcess::~EngineProcess() { Kill(); }

bool EngineProcess::alive() {
  {
    absl::MutexLock lock(&mutex_);
    if (killed_) return false;
  }
  return !Ended();
}

bool EngineProcess::Ended() const {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
         info.si_pid != 0;
}

void EngineProcess::Kill() {
  absl::MutexLock lock(&mutex_);
  if (killed_) return;
  child_->Kill();
  killed_ = true;
  stream_.Shutdown();
}

absl::Status EngineProcess::Died(absl::string_view circumstance) {
  std::string how;
  if (Ended()) {
    Kill();
    absl::MutexLock lock(&mutex_);
    how = absl::StrCat("Engine process ", DescribeWaitStatus(child_->Poll().value_or(0)));
  } else {
    // It lives but cannot be used: how it ends now is our doing.
    Kill();
    how = "Engine process was killed";
  }
  return WithErrorInfo(absl::UnavailableError(absl::StrCat(how, ": ", circumstance)), kEngineDied);
}

absl::Status EngineProcess::ReadReply(EngineReply& reply, absl::Duration limit) {
  // A clock that goes on while a wall clock is set back.
  const absl::Duration deadline = RealClock().Monotonic() + limit;
  while (true) {
    // Looking at the process in between finds its end although a descendant holds the socket.
    const absl::Duration slice =
        std::min(deadline - RealClock().Monotonic(), absl::Milliseconds(500));
    const absl::Status status = stream_.Read(reply, std::max(slice, absl::ZeroDuration()));
    if (status.ok()) return status;
    if (!absl::IsDeadlineExceeded(status)) {
      if (absl::IsOutOfRange(status)) {
        // The socket closes a moment before the process can be waited for.
        for (int i = 0; i < 100 && !Ended(); ++i) absl::SleepFor(absl::Milliseconds(5));
      }
      return Died(status.message());
    }
    if (Ended()) return Died("it left a descendant behind");
    if (RealClock().Monotonic() >= deadline) {
      return Died(absl::StrCat("it was silent for ", absl::FormatDuration(limit)));
    }
  }
}

absl::StatusOr<TaskResult> EngineProcess::Run(
    EngineRequest request, std::stop_token stop,
    const std::function<void(const EngineReply::TaskProgress&)>& on_progress) {
  request.set_request_id(++last_request_id_);
  const std::stop_callback kill_on_stop(stop, [this] { Kill(); });
  const auto stopped = [&stop](absl::Status status) {
    return stop.stop_requested() ? absl::CancelledError("Engine was stopped") : status;
  };
  if (absl::Status sent = stream_.Write(request); !sent.ok()) {
    // A request that is too large says nothing about the device's memory.
    return stopped(absl::IsUnavailable(sent) ? Died(sent.message())
                                             : absl::InternalError(sent.message()));
  }
  while (true) {
    EngineReply reply;
    if (absl::Status status = ReadReply(reply, options_.silence_limit); !status.ok()) {
      return stopped(std::move(status));
    }
    if (reply.request_id() != request.request_id()) continue;  // Late word of an earlier task.
    switch (reply.reply_case()) {
      case EngineReply::kProgress:
        on_progress(reply.progress());
        break;
      case EngineReply::kResult:
        return std::move(*reply.mutable_result());
      case EngineReply::kError: {
        absl::Status error = FromRpcStatus(reply.error());
        if (error.ok()) error = absl::InternalError("Engine reported an error without a code");
        // It ends by itself: the next task must not find it on its way out.
        if (ErrorReason(error) == kDeviceLost) Kill();
        return error;
      }
      default:
        Kill();
        return absl::InternalError("Engine sent a reply that this worker does not know");
    }
  }
}

}  // namespace qpruner::worker
