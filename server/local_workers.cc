#include "server/local_workers.h"

#include <signal.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/backoff.h"
#include "base/child_process.h"
#include "base/clock.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);
// A worker that ran for so long is healthy: the next failure starts at the shortest back-off.
constexpr absl::Duration kHealthyAfter = absl::Seconds(30);

struct Slot {
  Slot(std::string name, uint64_t seed)
      : name(std::move(name)),
        backoff({.initial = absl::Milliseconds(200), .maximum = absl::Seconds(10)}, seed) {}
  std::string name;
  Backoff backoff;
  std::unique_ptr<ChildProcess> process;
  // By the monotonic clock.
  absl::Duration started = -absl::InfiniteDuration();
  absl::Duration start_at = -absl::InfiniteDuration();
};

}  // namespace

std::string LocalWorkers::NameOf(int number) { return absl::StrCat("local-", number); }

LocalWorkers::LocalWorkers(Options options)
    : options_(std::move(options)), thread_([this] { Supervise(); }) {}

LocalWorkers::~LocalWorkers() { Stop(); }

void LocalWorkers::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void LocalWorkers::Supervise() {
  std::vector<Slot> slots;
  for (int i = 1; i <= options_.count; ++i) slots.emplace_back(NameOf(i), i);
  while (true) {
    const absl::Duration now = RealClock().Monotonic();
    for (size_t i = 0; i < slots.size(); ++i) {
      Slot& slot = slots[i];
      if (slot.process) {
        const std::optional<int> ended = slot.process->Poll();
        if (!ended) continue;
        slot.process.reset();
        if (now - slot.started > kHealthyAfter) slot.backoff.Reset();
        const absl::Duration delay = slot.backoff.Next();
        slot.start_at = now + delay;
        spdlog::warn("worker {} {}; it is started again in {}", slot.name,
                     DescribeWaitStatus(*ended), absl::FormatDuration(delay));
      }
      if (now < slot.start_at) continue;
      ChildProcess::Options child;
      child.argv = {options_.program,
                    "--server",
                    options_.server_address,
                    "--name",
                    slot.name,
                    "--data-dir",
                    absl::StrCat(options_.data_dir, "/", i + 1),
                    "--threads",
                    absl::StrCat(options_.threads),
                    "--engine-cpus",
                    absl::StrCat(options_.threads),
                    "--engine-first-cpu",
                    absl::StrCat(i * static_cast<size_t>(options_.threads))};
      if (!options_.token_files.empty()) {
        child.argv.insert(child.argv.end(), {"--token-file", options_.token_files[i]});
      }
      child.argv.insert(child.argv.end(), options_.arguments.begin(), options_.arguments.end());
      child.parent_death_signal = SIGKILL;
      absl::StatusOr<std::unique_ptr<ChildProcess>> process = ChildProcess::Spawn(child);
      if (process.ok()) {
        slot.process = *std::move(process);
        slot.started = now;
        spdlog::info("worker {}: process {}", slot.name, slot.process->pid());
      } else {
        const absl::Duration delay = slot.backoff.Next();
        slot.start_at = now + delay;
        spdlog::error("worker {} cannot be started: {}; next attempt in {}", slot.name,
                      std::string(process.status().message()), absl::FormatDuration(delay));
      }
    }
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kPollInterval)) break;
  }
  // All at once, then each with what is left of the grace.
  const absl::Duration deadline = RealClock().Monotonic() + options_.stop_grace;
  for (Slot& slot : slots) {
    if (slot.process) slot.process->SignalGroup(SIGTERM);
  }
  for (Slot& slot : slots) {
    if (!slot.process) continue;
    slot.process->WaitFor(std::max(deadline - RealClock().Monotonic(), absl::ZeroDuration()));
    slot.process->Kill();
  }
}

}  // namespace qpruner::server
