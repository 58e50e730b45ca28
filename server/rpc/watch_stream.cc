#include "server/rpc/watch_stream.h"

#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/queue/job_not_found.h"
#include "server/queue/job_states.h"
#include "server/rpc/refused_stream.h"

namespace qpruner::server {
namespace {

// Events read and held at a time.
constexpr int kBatchSize = 64;

// Either a read runs on the executor (`reading_`), or a write is in flight (`writing_`), or the
// stream is idle and waits for the hub. A call that finds the stream busy leaves a mark
// (`changed_`), so that no wake-up is lost.
class WatchStream final : public grpc::ServerWriteReactor<v1::JobEvent> {
 public:
  WatchStream(JobName name, int64_t after_sequence, JobStore& store, WatchHub& hub,
              StreamExecutor& executor, std::function<absl::Status()> admit)
      : name_(std::move(name)),
        admit_(std::move(admit)),
        store_(store),
        hub_(hub),
        executor_(executor),
        last_sequence_(after_sequence) {}

  void Start() {
    // The executor's and the hub's closures share the ownership with gRPC (until OnDone).
    self_.reset(this);
    subscription_ = hub_.Subscribe(name_.ToString(), [weak = std::weak_ptr<WatchStream>(self_)] {
      if (auto self = weak.lock()) self->Wake();
    });
    Wake();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) {
      FinishLocked(absl::CancelledError("The client went away"));
      return;
    }
    batch_.pop_front();
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
    } else if (!batch_.empty()) {
      writing_ = true;
      StartWrite(&batch_.front());
    } else if (ended_) {
      FinishLocked(end_status_);
    } else if (changed_) {
      changed_ = false;
      reading_ = true;
      executor_.Add([self = self_] { self->Read(); });
    }
  }

  // On the executor.
  void Read() {
    int64_t after = 0;
    {
      absl::MutexLock lock(&mutex_);
      after = last_sequence_;
    }
    const bool closed = hub_.closed();
    std::vector<v1::JobEvent> events;
    bool at_end = false;
    absl::Status status = admit_();
    if (status.ok()) {
      status = store_.Read([&](StoreReader& reader) -> absl::Status {
        ASSIGN_OR_RETURN(const internal::v1::JobRecord record, reader.GetJob(name_));
        ASSIGN_OR_RETURN(events, reader.ListEvents(name_, after, kBatchSize));
        const int64_t seen = events.empty() ? after : events.back().sequence();
        // A job's last event is that of its final state.
        at_end = IsFinal(record.job().state()) && seen >= record.job().last_event_sequence();
        return absl::OkStatus();
      });
      if (absl::IsNotFound(status)) status = JobNotFound(name_);
    }
    if (status.ok() && closed && !at_end) {
      status = WithErrorInfo(absl::UnavailableError("The server is stopping: watch again from the "
                                                    "last sequence"),
                             "SERVER_STOPPING");
      // What is stored is still sent; there is no end of it only while tasks go on.
      if (events.size() == kBatchSize) status = absl::OkStatus();
    }
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (!events.empty()) last_sequence_ = events.back().sequence();
    // A full batch may not be all.
    changed_ |= events.size() == kBatchSize;
    batch_.assign(std::make_move_iterator(events.begin()), std::make_move_iterator(events.end()));
    ended_ = at_end || !status.ok();
    end_status_ = status;
    ContinueLocked();
  }

  void FinishLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (finished_) return;
    finished_ = true;
    Finish(ToGrpcStatus(status));
  }

  const JobName name_;
  const std::function<absl::Status()> admit_;
  JobStore& store_;
  WatchHub& hub_;
  StreamExecutor& executor_;
  int64_t subscription_ = 0;
  // gRPC's share: from Start to OnDone.
  std::shared_ptr<WatchStream> self_;

  absl::Mutex mutex_;
  int64_t last_sequence_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::JobEvent> batch_ ABSL_GUARDED_BY(mutex_);
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

grpc::ServerWriteReactor<v1::JobEvent>* StartWatchStream(const v1::WatchJobRequest& request,
                                                         JobStore& store, WatchHub& hub,
                                                         StreamExecutor& executor,
                                                         std::function<absl::Status()> admit) {
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
  auto* stream =
      new WatchStream(*name, request.after_sequence(), store, hub, executor, std::move(admit));
  stream->Start();
  return stream;
}

}  // namespace qpruner::server
