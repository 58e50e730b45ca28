// Uploads that were cut off, kept for a while so that they go on where they stopped. In this
// process only: after its end, or at another replica, an upload begins anew.
#ifndef QPRUNER_SERVER_RPC_INTERRUPTED_UPLOADS_H_
#define QPRUNER_SERVER_RPC_INTERRUPTED_UPLOADS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

// Thread-safe. Destroyed before the store of its writers, after all calls have ended.
//
// A key names one file under one lease.
class InterruptedUploads {
 public:
  struct Options {
    // By the clock. Whoever is away for longer has lost its lease.
    absl::Duration keep_for = absl::Minutes(2);
    // Each takes a piece of a disk or, with S3, a part of a file in memory. The oldest goes first.
    size_t most = 32;
    // How often, in real time, a thread of its own drops old ones; infinite: somebody else calls
    // DropOld.
    absl::Duration look_interval = absl::Seconds(5);
  };
  InterruptedUploads(Clock& clock, Options options);
  InterruptedUploads(const InterruptedUploads&) = delete;
  InterruptedUploads& operator=(const InterruptedUploads&) = delete;

  // Lives as long as an upload's call.
  class Running {
   public:
    // `end_call` may be called from another thread, once, and after the end of this (EndingOf).
    Running(InterruptedUploads& uploads, std::string key, std::function<void()> end_call);
    ~Running();
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

    // The call was cut off after `received_bytes`, all of them appended to `writer`.
    void Keep(std::unique_ptr<ArtifactWriter> writer, int64_t received_bytes);

   private:
    friend class InterruptedUploads;
    InterruptedUploads& uploads_;
    const std::string key_;
    std::function<void()> end_call_;
    std::list<Running*>::iterator self_;
  };

  // How much of the file is kept; 0: none. A call that still runs has lost its worker, which would
  // not ask: it is ended, and waited for, for some seconds.
  int64_t ReceivedBytes(const std::string& key);

  // The kept upload, if it has come to `received_bytes`; else null.
  std::unique_ptr<ArtifactWriter> Take(const std::string& key, int64_t received_bytes);

  // Drops what was kept for long enough.
  void DropOld();

 private:
  struct Kept {
    std::string key;
    std::unique_ptr<ArtifactWriter> writer;
    int64_t received_bytes = 0;
    absl::Duration since;
  };
  std::vector<std::function<void()>> TakeEndings(const std::string& key);
  std::list<Kept>::iterator Find(const std::string& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Clock& clock_;
  const Options options_;
  absl::Mutex mutex_;
  absl::CondVar ended_;
  std::list<Running*> running_ ABSL_GUARDED_BY(mutex_);
  // The oldest first. Writers end outside of the lock: a storage takes its time.
  std::list<Kept> kept_ ABSL_GUARDED_BY(mutex_);
  std::jthread thread_;  // Last: it uses all of the above.
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_RPC_INTERRUPTED_UPLOADS_H_
