#include "server/rpc/interrupted_uploads.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/stoppable_sleep.h"

namespace qpruner::server {
namespace {

// In real time: what a thread needs to see that its call has ended.
constexpr absl::Duration kEndingTakesAtMost = absl::Seconds(5);

}  // namespace

InterruptedUploads::InterruptedUploads(Clock& clock, Options options)
    : clock_(clock), options_(options) {
  if (options_.look_interval == absl::InfiniteDuration()) return;
  thread_ = std::jthread([this](const std::stop_token& stop) {
    while (SleepUnlessStopped(stop, options_.look_interval)) DropOld();
  });
}

InterruptedUploads::Running::Running(InterruptedUploads& uploads, std::string key,
                                     std::function<void()> end_call)
    : uploads_(uploads), key_(std::move(key)), end_call_(std::move(end_call)) {
  absl::MutexLock lock(&uploads_.mutex_);
  self_ = uploads_.running_.insert(uploads_.running_.end(), this);
}

InterruptedUploads::Running::~Running() {
  absl::MutexLock lock(&uploads_.mutex_);
  uploads_.running_.erase(self_);
  uploads_.ended_.SignalAll();
}

void InterruptedUploads::Running::Keep(std::unique_ptr<ArtifactWriter> writer,
                                       int64_t received_bytes) {
  Kept kept{key_, std::move(writer), received_bytes, uploads_.clock_.Monotonic()};
  std::list<Kept> dropped;
  absl::MutexLock lock(&uploads_.mutex_);
  std::list<Kept>& all = uploads_.kept_;
  if (const auto other = uploads_.Find(key_); other != all.end()) {
    if (other->received_bytes >= received_bytes) return;
    dropped.splice(dropped.end(), all, other);
  } else if (all.size() >= uploads_.options_.most) {
    dropped.splice(dropped.end(), all, all.begin());
  }
  all.push_back(std::move(kept));
}

int64_t InterruptedUploads::ReceivedBytes(const std::string& key) {
  // gRPC may run what follows from a call's end on this thread: outside of the lock.
  for (const std::function<void()>& end_call : TakeEndings(key)) end_call();
  const absl::Duration last = RealClock().Monotonic() + kEndingTakesAtMost;
  absl::MutexLock lock(&mutex_);
  const auto runs = [&](const Running* running) { return running->key_ == key; };
  while (std::any_of(running_.begin(), running_.end(), runs)) {
    if (ended_.WaitWithTimeout(&mutex_, last - RealClock().Monotonic())) break;
  }
  const auto kept = Find(key);
  return kept == kept_.end() ? 0 : kept->received_bytes;
}

std::vector<std::function<void()>> InterruptedUploads::TakeEndings(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::function<void()>> endings;
  for (Running* running : running_) {
    if (running->key_ == key && running->end_call_) {
      endings.push_back(std::exchange(running->end_call_, nullptr));
    }
  }
  return endings;
}

std::unique_ptr<ArtifactWriter> InterruptedUploads::Take(const std::string& key,
                                                         int64_t received_bytes) {
  absl::MutexLock lock(&mutex_);
  const auto kept = Find(key);
  if (kept == kept_.end() || kept->received_bytes != received_bytes) return nullptr;
  std::unique_ptr<ArtifactWriter> writer = std::move(kept->writer);
  kept_.erase(kept);
  return writer;
}

void InterruptedUploads::DropOld() {
  std::list<Kept> dropped;
  absl::MutexLock lock(&mutex_);
  const absl::Duration too_old = clock_.Monotonic() - options_.keep_for;
  while (!kept_.empty() && kept_.front().since <= too_old) {
    dropped.splice(dropped.end(), kept_, kept_.begin());
  }
}

std::list<InterruptedUploads::Kept>::iterator InterruptedUploads::Find(const std::string& key) {
  return std::find_if(kept_.begin(), kept_.end(),
                      [&](const Kept& kept) { return kept.key == key; });
}

}  // namespace qpruner::server
