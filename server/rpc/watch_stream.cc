#include "server/rpc/watch_stream.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/resource_name.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/rpc/refused_stream.h"

namespace qpruner::server {
namespace {

// Either it waits for a read (`reading_`), or a write is in flight (`writing_`), or the
// stream is idle and waits for the hub. A call that finds the stream busy leaves a mark
// (`changed_`), so that no wake-up is lost.
class WatchStream final : public grpc::ServerWriteReactor<v1::JobEvent> {
 public:
  WatchStream(grpc::CallbackServerContext& context, JobName name, int64_t after_sequence,
              EventReads& reads, WatchHub& hub, PeerWatchdog& peers,
              std::function<absl::Status()> admit, std::unique_ptr<StreamLimit::Place> place)
      : context_(context),
        name_(std::move(name)),
        admit_(std::move(admit)),
        place_(std::move(place)),
        reads_(reads),
        hub_(hub),
        peers_(peers),
        last_sequence_(after_sequence) {}

  void Start() {
    // The reads' and the hub's closures share the ownership with gRPC (until OnDone).
    self_.reset(this);
    subscription_ = hub_.Subscribe(name_.ToString(), [weak = std::weak_ptr<WatchStream>(self_)] {
      if (auto self = weak.lock()) self->Wake();
    });
    Wake();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    write_wait_.reset();
    if (!ok) {
      FinishLocked(absl::CancelledError("The client went away"));
      return;
    }
    // Many streams hold the same events: the last lets go of them.
    if (++written_count_ == batch_->events.size()) batch_.reset();
    ContinueLocked();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (!reading_ && !writing_) FinishLocked(absl::CancelledError("The call was cancelled"));
  }

  void OnDone() override {
    hub_.Unsubscribe(subscription_);
    // May delete this.
    const std::shared_ptr<WatchStream> last = std::move(self_);
  }

 private:
  void Wake() {
    absl::MutexLock lock(&mutex_);
    changed_ = true;
    if (!reading_ && !writing_) ContinueLocked();
  }

  // What to do when nothing is in flight.
  void ContinueLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    if (cancelled_) {
      FinishLocked(absl::CancelledError("The call was cancelled"));
    } else if (batch_ != nullptr && written_count_ < batch_->events.size()) {
      writing_ = true;
      const v1::JobEvent& event = batch_->events[written_count_];
      write_wait_.emplace(
          peers_,
          EndingOf(context_, absl::StrCat("WATCHER_TOO_SLOW: no event was taken for ",
                                          absl::FormatDuration(peers_.patience()),
                                          "; watch again after sequence ", event.sequence() - 1)));
      StartWrite(&event);
    } else if (ended_) {
      FinishLocked(end_status_);
    } else if (changed_) {
      changed_ = false;
      reading_ = true;
      reads_.Ask(name_, last_sequence_, [self = self_](std::shared_ptr<const EventBatch> batch) {
        self->Continue(std::move(batch));
      });
    }
  }

  // On a thread of the reads.
  void Continue(std::shared_ptr<const EventBatch> batch) {
    const absl::Status admitted = admit_();
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (admitted.ok()) {
      batch_ = std::move(batch);
      written_count_ = 0;
      if (!batch_->events.empty()) last_sequence_ = batch_->events.back().sequence();
      changed_ |= batch_->is_full;
    }
    end_status_ = admitted.ok() ? batch_->status : admitted;
    ended_ = !end_status_.ok() || batch_->at_end;
    ContinueLocked();
  }

  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    finished_ = true;
    Finish(ToGrpcStatus(status));
  }

  grpc::CallbackServerContext& context_;
  const JobName name_;
  const std::function<absl::Status()> admit_;
  const std::unique_ptr<StreamLimit::Place> place_;
  EventReads& reads_;
  WatchHub& hub_;
  PeerWatchdog& peers_;
  int64_t subscription_ = 0;
  // gRPC's share: from Start to OnDone.
  std::shared_ptr<WatchStream> self_;

  absl::Mutex mutex_;
  int64_t last_sequence_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const EventBatch> batch_ ABSL_GUARDED_BY(mutex_);
  size_t written_count_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // While writing_.
  std::optional<PeerWatchdog::Wait> write_wait_ ABSL_GUARDED_BY(mutex_);
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

grpc::ServerWriteReactor<v1::JobEvent>* StartWatchStream(
    grpc::CallbackServerContext& context, const v1::WatchJobRequest& request, EventReads& reads,
    WatchHub& hub, PeerWatchdog& peers, std::function<absl::Status()> admit,
    std::unique_ptr<StreamLimit::Place> place) {
  std::vector<FieldViolation> violations;
  const absl::StatusOr<JobName> name = JobName::Parse(request.name());
  if (!name.ok()) violations.push_back({"name", std::string(name.status().message())});
  if (request.after_sequence() < 0) {
    violations.push_back(
        {"after_sequence", absl::StrCat("must not be negative, is ", request.after_sequence())});
  }
  if (!violations.empty()) {
    return RefusedStream<v1::JobEvent>::Start(BadRequestError(violations));
  }
  auto* stream = new WatchStream(context, *name, request.after_sequence(), reads, hub, peers,
                                 std::move(admit), std::move(place));
  stream->Start();
  return stream;
}

}  // namespace qpruner::server
