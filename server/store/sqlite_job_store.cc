#include "server/store/sqlite_job_store.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <semaphore>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/folder_lock.h"
#include "base/id_generator.h"
#include "base/status_macros.h"
#include "server/store/sqlite_connection.h"
#include "server/store/sqlite_schema.h"
#include "server/store/sqlite_transaction.h"

namespace qpruner::server {
namespace {

using Body = absl::FunctionRef<absl::Status(StoreTransaction&)>;

// Bounds the time to the first answer of a batch; far more than the callers of a busy server.
constexpr size_t kMaxBatch = 1024;

class SqliteJobStore final : public JobStore {
 public:
  SqliteJobStore(std::unique_ptr<FolderLock> lock, const std::string& folder,
                 std::unique_ptr<SqliteConnection> writer,
                 std::vector<std::unique_ptr<SqliteConnection>> readers, int checkpoint_pages)
      : lock_(std::move(lock)),
        identity_path_(folder + "/identity"),
        clock_path_(folder + "/limit_clock"),
        checkpoint_pages_(checkpoint_pages),
        writer_(std::move(writer)),
        idle_readers_(std::move(readers)) {
    sqlite3_wal_hook(
        writer_->handle(),
        [](void* self, sqlite3*, const char*, int pages) {
          static_cast<SqliteJobStore*>(self)->log_pages_ = pages;
          return SQLITE_OK;
        },
        this);
    writing_thread_ = std::thread([this] { WriteUntilClosed(); });
    writing_thread_id_ = writing_thread_.get_id();
  }

  ~SqliteJobStore() override {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    work_came_.notify_one();
    writing_thread_.join();
  }

  // A file beside the database's, written when somebody first asks.
  absl::StatusOr<std::string> Identity() override {
    absl::StatusOr<std::string> identity = ReadFile(identity_path_, 256);
    if (!absl::IsNotFound(identity.status())) return identity;
    std::string chosen = absl::StrCat("sqlite-", SystemIdGenerator().Hex(16));
    RETURN_IF_ERROR(WriteFileDurably(identity_path_, chosen));
    return chosen;
  }

  // Another file: it is not a matter of any transaction.
  absl::StatusOr<absl::Duration> LimitClockOffset() override {
    const absl::StatusOr<std::string> text = ReadFile(clock_path_, 256);
    if (absl::IsNotFound(text.status())) return absl::ZeroDuration();
    if (!text.ok()) return text.status();
    absl::Duration offset;
    if (absl::ParseDuration(*text, &offset)) return offset;
    return absl::DataLossError(absl::StrCat("Not a duration: ", clock_path_));
  }
  absl::Status KeepLimitClockOffset(absl::Duration offset) override {
    return WriteFileDurably(clock_path_, absl::FormatDuration(offset));
  }

  absl::Status Transact(Body body) override {
    if (std::this_thread::get_id() == writing_thread_id_) {
      return absl::InternalError("A transaction's body must not start another transaction");
    }
    Call call{body};
    {
      std::lock_guard lock(mutex_);
      waiting_.push_back(&call);
    }
    work_came_.notify_one();
    call.done.acquire();
    return call.status;
  }

  absl::Status Read(absl::FunctionRef<absl::Status(StoreReader&)> body) override {
    return ReadOn(TakeReader(), body);
  }

  std::optional<absl::Status> ReadAtOnce(
      absl::FunctionRef<absl::Status(StoreReader&)> body) override {
    std::unique_ptr<SqliteConnection> connection = TakeIdleReader();
    if (connection == nullptr) return std::nullopt;
    return ReadOn(std::move(connection), body);
  }

 private:
  // A caller of Transact, waiting on its stack.
  struct Call {
    Body body;
    absl::Status status;
    std::binary_semaphore done{0};
  };

  // A caller of Read for whom no connection was left.
  struct WaitingReader {
    std::unique_ptr<SqliteConnection> connection;
    std::binary_semaphore served{0};
  };

  absl::Status ReadOn(std::unique_ptr<SqliteConnection> connection,
                      absl::FunctionRef<absl::Status(StoreReader&)> body) {
    absl::Status status = connection->Run("BEGIN");
    if (status.ok()) {
      {
        SqliteTransaction reader(*connection);
        status = body(reader);
      }
      // Ends the snapshot; there is nothing to commit.
      const absl::Status ended = connection->Run("ROLLBACK");
      if (status.ok()) status = ended;
    }
    connection->ForgetFailure();
    ReturnReader(std::move(connection));
    return status;
  }

  // Null: all are out.
  std::unique_ptr<SqliteConnection> TakeIdleReader() {
    std::lock_guard lock(readers_mutex_);
    if (idle_readers_.empty()) return nullptr;
    std::unique_ptr<SqliteConnection> connection = std::move(idle_readers_.back());
    idle_readers_.pop_back();
    return connection;
  }

  std::unique_ptr<SqliteConnection> TakeReader() {
    WaitingReader waiting;
    {
      std::lock_guard lock(readers_mutex_);
      if (!idle_readers_.empty()) {
        std::unique_ptr<SqliteConnection> connection = std::move(idle_readers_.back());
        idle_readers_.pop_back();
        return connection;
      }
      waiting_readers_.push_back(&waiting);
    }
    waiting.served.acquire();
    return std::move(waiting.connection);
  }

  // Hands the connection to whoever has waited longest: waking all to compete would let some
  // starve.
  void ReturnReader(std::unique_ptr<SqliteConnection> connection) {
    std::lock_guard lock(readers_mutex_);
    if (waiting_readers_.empty()) {
      idle_readers_.push_back(std::move(connection));
      return;
    }
    WaitingReader* next = waiting_readers_.front();
    waiting_readers_.pop_front();
    next->connection = std::move(connection);
    next->served.release();
  }

  void WriteUntilClosed() {
    std::vector<Call*> batch;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        work_came_.wait(lock, [this] { return closing_ || !waiting_.empty(); });
        if (waiting_.empty()) return;
        const size_t count = std::min(waiting_.size(), kMaxBatch);
        batch.assign(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
        waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
      }
      const absl::Status status = RunBatch(batch);
      for (Call* call : batch) {
        // Also one that was refused: it may have been for what another of the batch wrote.
        // Not a copy: callers would share its reference count, which lives in an Abseil that the
        // thread sanitizer cannot see into.
        if (!status.ok()) call->status = absl::Status(status.code(), status.message());
        call->done.release();
      }
      Checkpoint();
    }
  }

  // Runs every body and commits. A body's own error goes to its call alone; the error returned here
  // is that of the batch: nothing of it was written.
  absl::Status RunBatch(const std::vector<Call*>& batch) {
    RETURN_IF_ERROR(writer_->Run("BEGIN IMMEDIATE"));
    auto rollback = absl::MakeCleanup([this] {
      if (writer_->in_transaction()) writer_->Run("ROLLBACK").IgnoreError();
    });
    for (Call* call : batch) {
      writer_->ForgetFailure();
      RETURN_IF_ERROR(writer_->Run("SAVEPOINT body"));
      {
        SqliteTransaction transaction(*writer_);
        call->status = call->body(transaction);
      }
      // A body may go on after a violated constraint, but not hide that the disk failed.
      if (call->status.ok()) call->status = writer_->failure();
      if (!writer_->in_transaction()) {
        return absl::UnavailableError(absl::StrCat("Job store gave up a transaction, try again: ",
                                                   writer_->failure().message()));
      }
      if (!call->status.ok()) RETURN_IF_ERROR(writer_->Run("ROLLBACK TO body"));
      RETURN_IF_ERROR(writer_->Run("RELEASE body"));
    }
    return writer_->Run("COMMIT");
  }

  // Copies the write-ahead log into the file once it is long, after the callers have their answers.
  // A failure does no harm: the log stays and the next try comes after the next commit.
  void Checkpoint() {
    if (log_pages_ < checkpoint_pages_) return;
    // Readers keep the log from starting over; when they have done so for long, wait for them.
    const int mode =
        log_pages_ < 16 * checkpoint_pages_ ? SQLITE_CHECKPOINT_PASSIVE : SQLITE_CHECKPOINT_RESTART;
    sqlite3_wal_checkpoint_v2(writer_->handle(), nullptr, mode, nullptr, nullptr);
  }

  // Constant after construction.
  const std::unique_ptr<FolderLock> lock_;
  const std::string identity_path_;
  const std::string clock_path_;
  const int checkpoint_pages_;
  std::thread writing_thread_;
  std::thread::id writing_thread_id_;

  // Used by the writing thread alone.
  const std::unique_ptr<SqliteConnection> writer_;
  int log_pages_ = 0;

  // The standard library's locks, whose order the thread sanitizer sees without help.
  std::mutex mutex_;
  std::condition_variable work_came_;
  std::vector<Call*> waiting_;  // Guarded by mutex_.
  bool closing_ = false;        // Guarded by mutex_.

  std::mutex readers_mutex_;
  // Guarded by readers_mutex_.
  std::vector<std::unique_ptr<SqliteConnection>> idle_readers_;
  // Longest wait first. Empty unless all connections are out. Guarded by readers_mutex_.
  std::deque<WaitingReader*> waiting_readers_;
};

absl::Status Prepare(SqliteConnection& writer) {
  // EXTRA: before the switch to a write-ahead log, a transaction ends with the removal of its
  // journal. If that were lost in a power cut, the journal would later undo what came after it.
  RETURN_IF_ERROR(writer.ExecuteScript("PRAGMA foreign_keys = ON; PRAGMA synchronous = EXTRA;"));
  RETURN_IF_ERROR(MigrateSqliteSchema(writer));
  // FULL: a commit returns after the log is synced. The store checkpoints on its own.
  return writer.ExecuteScript(
      "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; "
      "PRAGMA journal_size_limit = 67108864;");
}

absl::Status At(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("Cannot open job store ", path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(SqliteJobStoreOptions options) {
  if (options.reader_count < 1 || options.checkpoint_pages < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("reader_count and checkpoint_pages must be at least 1, are ",
                     options.reader_count, " and ", options.checkpoint_pages));
  }
  const std::string path = absl::StrCat(options.folder, "/jobs.sqlite");
  RETURN_IF_ERROR(CreateFolders(options.folder));
  ASSIGN_OR_RETURN(std::unique_ptr<FolderLock> lock, FolderLock::Take(options.folder));
  using Access = SqliteConnection::Access;
  auto writer = SqliteConnection::Open(path, Access::kReadWriteCreate, options.vfs);
  if (!writer.ok()) return At(path, writer.status());
  if (absl::Status status = Prepare(**writer); !status.ok()) return At(path, status);
  // The file's entry in its folder: SQLite does not sync it.
  RETURN_IF_ERROR(SyncFolder(options.folder));
  std::vector<std::unique_ptr<SqliteConnection>> readers;
  for (int i = 0; i < options.reader_count; ++i) {
    auto reader = SqliteConnection::Open(path, Access::kReadOnly, options.vfs);
    if (!reader.ok()) return At(path, reader.status());
    readers.push_back(*std::move(reader));
  }
  return std::make_unique<SqliteJobStore>(std::move(lock), options.folder, *std::move(writer),
                                          std::move(readers), options.checkpoint_pages);
}

}  // namespace qpruner::server
