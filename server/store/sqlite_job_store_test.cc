#include "server/store/sqlite_job_store.h"

#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "server/store/faulty_sqlite_vfs.h"
#include "server/store/job_store_contract_test.h"
#include "server/store/sqlite_schema.h"
#include "server/store/sqlite_transaction.h"

namespace qpruner::server {
namespace {

using internal::v1::JobRecord;
using testing::HasSubstr;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = testing::TempDir() + "/sqlite_job_store.XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class SqliteUnderTest final : public JobStoreUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<JobStore>> Open() override {
    SqliteJobStoreOptions options;
    options.folder = folder_.path();
    return OpenSqliteJobStore(options);
  }

 private:
  TemporaryFolder folder_;
};

std::unique_ptr<JobStoreUnderTest> MakeSqliteUnderTest() {
  return std::make_unique<SqliteUnderTest>();
}

INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreContract, testing::Values(&MakeSqliteUnderTest));

JobName Name(int64_t number) { return {"default", absl::StrCat("j", number)}; }

// A job with one event: two tables, so that half a transaction would show.
absl::Status InsertJob(JobStore& store, int64_t number) {
  return store.Transact([&](StoreTransaction& transaction) -> absl::Status {
    JobRecord record;
    record.mutable_job()->set_name(Name(number).ToString());
    record.mutable_job()->set_state(v1::CompressionJob::PENDING);
    record.mutable_job()->set_display_name(std::string(500, 'x'));
    RETURN_IF_ERROR(transaction.InsertJob(record));
    v1::JobEvent event;
    event.set_sequence(1);
    return transaction.AppendEvent(Name(number), event);
  });
}

// OK if the whole job is there.
absl::Status FindJob(JobStore& store, int64_t number) {
  return store.Read([&](StoreReader& reader) -> absl::Status {
    RETURN_IF_ERROR(reader.GetJob(Name(number)).status());
    ASSIGN_OR_RETURN(const auto events, reader.ListEvents(Name(number), 0, 0));
    return events.size() == 1 ? absl::OkStatus() : absl::DataLossError("job without its event");
  });
}

class SqliteUpgrade : public JobStoreContract {};
INSTANTIATE_TEST_SUITE_P(Sqlite, SqliteUpgrade, testing::Values(&MakeSqliteUnderTest));

TEST_P(SqliteUpgrade, AFileOfTheFirstVersionGoesOn) {
  TemporaryFolder folder;
  {
    const auto old = SqliteConnection::Open(folder.path() + "/jobs.sqlite",
                                            SqliteConnection::Access::kReadWriteCreate, "")
                         .value();
    ASSERT_TRUE(MigrateSqliteSchema(*old, 1).ok());
    ASSERT_TRUE(
        old->Run(
               "INSERT INTO jobs (project, job, state, record) VALUES (?1, ?2, ?3, ?4)", "default",
               "a", Job::RUNNING,
               SqliteBlob{MakeJob(Name("a"), Job::RUNNING, {{"team", "blue"}}).SerializeAsString()})
            .ok());
    const int64_t job = old->last_insert_id();
    ASSERT_TRUE(old->Run("INSERT INTO job_labels (job_id, project, key, value) VALUES (?1, ?2, ?3, "
                         "?4)",
                         job, "default", "team", "blue")
                    .ok());
    Task task = MakeTask(Name("a"), "prepare");
    task.set_priority(3);
    ASSERT_TRUE(old->Run("INSERT INTO tasks (job_id, task_id, state, priority, create_time, "
                         "not_before, lease_expire_time, record) "
                         "VALUES (?1, ?2, ?3, ?4, 100000000000, 0, 0, ?5)",
                         job, "prepare", Task::QUEUED, 3, SqliteBlob{task.SerializeAsString()})
                    .ok());
    ASSERT_TRUE(old->Run("INSERT INTO trials (job_id, trial_index, record) VALUES (?1, 1, ?2)", job,
                         SqliteBlob{MakeTrial(1).SerializeAsString()})
                    .ok());
  }
  const auto store = OpenSqliteJobStore({.folder = folder.path()});
  ASSERT_TRUE(store.ok()) << store.status();
  ExpectOldJobGoesOn(**store);
}

// As `sqlite3 jobs.sqlite ".backup copy"` does (docs/operations.md), while the store is in use.
TEST(SqliteJobStore, ABackupOfARunningStoreOpens) {
  TemporaryFolder folder, restored;
  const auto store = OpenSqliteJobStore({.folder = folder.path()}).value();
  ASSERT_TRUE(InsertJob(*store, 1).ok());
  sqlite3 *from = nullptr, *to = nullptr;
  ASSERT_EQ(sqlite3_open((folder.path() + "/jobs.sqlite").c_str(), &from), SQLITE_OK);
  ASSERT_EQ(sqlite3_open((restored.path() + "/jobs.sqlite").c_str(), &to), SQLITE_OK);
  sqlite3_backup* backup = sqlite3_backup_init(to, "main", from, "main");
  ASSERT_EQ(sqlite3_backup_step(backup, -1), SQLITE_DONE);
  ASSERT_EQ(sqlite3_backup_finish(backup), SQLITE_OK);
  sqlite3_close(from);
  sqlite3_close(to);
  ASSERT_TRUE(InsertJob(*store, 2).ok());
  const auto copy = OpenSqliteJobStore({.folder = restored.path()}).value();
  EXPECT_TRUE(FindJob(*copy, 1).ok());
  EXPECT_TRUE(absl::IsNotFound(FindJob(*copy, 2)));
}

// Runs statements on the file itself, behind the store's back.
void Tamper(const std::string& folder, const char* sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open((folder + "/jobs.sqlite").c_str(), &database), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(database, sql, nullptr, nullptr, nullptr), SQLITE_OK)
      << sqlite3_errmsg(database);
  sqlite3_close(database);
}

class SqliteJobStoreTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& vfs = "",
                                                 int checkpoint_pages = 20) {
    return OpenIn(folder_.path(), vfs, checkpoint_pages);
  }
  static absl::StatusOr<std::unique_ptr<JobStore>> OpenIn(const std::string& folder,
                                                          const std::string& vfs = "",
                                                          int checkpoint_pages = 20) {
    SqliteJobStoreOptions options;
    options.folder = folder;
    options.vfs = vfs;
    options.checkpoint_pages = checkpoint_pages;
    return OpenSqliteJobStore(options);
  }

  TemporaryFolder folder_;
};

TEST_F(SqliteJobStoreTest, IsOpenOnlyOnce) {
  auto first = Open();
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status second = Open().status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.message()), HasSubstr(absl::StrCat("process ", getpid())));
  EXPECT_THAT(std::string(second.message()), HasSubstr(folder_.path()));
  first->reset();
  EXPECT_TRUE(Open().ok());
}

TEST_F(SqliteJobStoreTest, CreatesItsFolder) {
  EXPECT_TRUE(OpenIn(folder_.path() + "/a/b").ok());
  EXPECT_TRUE(std::filesystem::exists(folder_.path() + "/a/b/jobs.sqlite"));
}

TEST_F(SqliteJobStoreTest, RefusesOptionsThatCannotWork) {
  SqliteJobStoreOptions options;
  options.folder = folder_.path();
  options.reader_count = 0;
  EXPECT_EQ(OpenSqliteJobStore(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SqliteJobStoreTest, RefusesANewerSchema) {
  ASSERT_TRUE(Open().ok());
  Tamper(folder_.path(), "PRAGMA user_version = 1000");
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("schema version 1000"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat("versions up to ", kSqliteSchemaVersion)));
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
}

TEST_F(SqliteJobStoreTest, RefusesAnotherProgramsDatabase) {
  Tamper(folder_.path(), "CREATE TABLE recipes (cake TEXT)");
  const absl::Status status = Open().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another program"));
}

TEST_F(SqliteJobStoreTest, NoticesDamage) {
  {
    auto store = Open();
    ASSERT_TRUE(store.ok());
    ASSERT_TRUE(InsertJob(**store, 1).ok());
  }
  const std::string path = folder_.path() + "/jobs.sqlite";
  const auto size = std::filesystem::file_size(path);
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out)
      .seekp(4096)
      .write(std::string(size - 4096, '\x5a').data(), static_cast<std::streamsize>(size - 4096));
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kDataLoss) << Open().status();
  std::ofstream(path, std::ios::trunc) << std::string(10'000, 'x');
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kDataLoss) << Open().status();
}

TEST_F(SqliteJobStoreTest, NoticesARecordThatCannotBeRead) {
  auto store = Open();
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE(InsertJob(**store, 1).ok());
  store->reset();
  Tamper(folder_.path(), "UPDATE jobs SET record = x'ff'");
  store = Open();
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(FindJob(**store, 1).code(), absl::StatusCode::kDataLoss);
}

TEST_F(SqliteJobStoreTest, BodyThatStartsATransactionIsRefused) {
  auto store = Open();
  ASSERT_TRUE(store.ok());
  const absl::Status status = (*store)->Transact([&](StoreTransaction&) {
    return (*store)->Transact([](StoreTransaction&) { return absl::OkStatus(); });
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
}

TEST_F(SqliteJobStoreTest, AnswersOnlyWhatIsSynced) {
  FaultySqliteVfs vfs("synced-test");
  auto store = Open(vfs.name(), /*checkpoint_pages=*/100'000);
  ASSERT_TRUE(store.ok()) << store.status();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(InsertJob(**store, i).ok());
    EXPECT_THAT(vfs.UnsyncedFiles(), IsEmpty());
  }
}

TEST_F(SqliteJobStoreTest, CallersShareSyncs) {
  FaultySqliteVfs vfs("shared-sync-test");
  auto store = Open(vfs.name(), /*checkpoint_pages=*/100'000);
  ASSERT_TRUE(store.ok()) << store.status();
  const int64_t before = vfs.sync_count();
  constexpr int kCallers = 32, kRounds = 10;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < kRounds; ++round) {
        EXPECT_TRUE(InsertJob(**store, caller * kRounds + round).ok());
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  // While one batch syncs, the next one gathers: at best 32 share each sync. Half would be plenty.
  EXPECT_LT(vfs.sync_count() - before, kCallers * kRounds / 2);
}

// What was answered is found in what had been synced, whatever the time of the power cut: between
// commits, and between the steps of a checkpoint.
TEST_F(SqliteJobStoreTest, PowerCutKeepsWhatWasAnswered) {
  FaultySqliteVfs vfs("power-cut-test");
  auto store = Open(vfs.name());
  ASSERT_TRUE(store.ok()) << store.status();
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(InsertJob(**store, i).ok());
    if (i % 4 != 0) continue;
    TemporaryFolder left;
    vfs.WriteSyncedFiles(left.path());
    auto recovered = OpenIn(left.path());
    ASSERT_TRUE(recovered.ok()) << recovered.status();
    for (int found = 0; found <= i; ++found) {
      const absl::Status status = FindJob(**recovered, found);
      ASSERT_TRUE(status.ok()) << "job " << found << " of " << i << ": " << status;
    }
  }
}

// kill -9 in the middle of a load of writes, several times over the same files.
TEST_F(SqliteJobStoreTest, KillKeepsWhatWasAnswered) {
  std::set<int64_t> answered;
  for (int round = 0; round < 4; ++round) {
    int answers[2];
    ASSERT_EQ(pipe(answers), 0);
    const pid_t child = fork();
    if (child == 0) {
      close(answers[0]);
      auto store = Open();
      if (!store.ok()) _exit(3);
      std::vector<std::thread> callers;
      for (int caller = 0; caller < 8; ++caller) {
        callers.emplace_back([&, caller] {
          for (int64_t i = 0;; ++i) {
            const int64_t number = (i * 8 + caller) * 4 + round;
            if (!InsertJob(**store, number).ok()) _exit(4);
            // One atomic write each: shorter than PIPE_BUF.
            if (write(answers[1], &number, sizeof number) != sizeof number) _exit(5);
          }
        });
      }
      for (;;) pause();
    }
    close(answers[1]);
    int64_t number = 0;
    for (int i = 0; i < 60 * (round + 1); ++i) {
      ASSERT_EQ(read(answers[0], &number, sizeof number), static_cast<ssize_t>(sizeof number));
      answered.insert(number);
    }
    kill(child, SIGKILL);
    // What was answered before the signal got there counts too.
    while (read(answers[0], &number, sizeof number) == sizeof number) answered.insert(number);
    close(answers[0]);
    int wait_status = 0;
    ASSERT_EQ(waitpid(child, &wait_status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(wait_status));

    auto store = Open();
    ASSERT_TRUE(store.ok()) << store.status();
    for (const int64_t found : answered) {
      const absl::Status status = FindJob(**store, found);
      ASSERT_TRUE(status.ok()) << "job " << found << ": " << status;
    }
    // And no half of a transaction that was not answered.
    const absl::Status status = (*store)->Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(const auto page, reader.ListJobs({"default", {}, {}}, 1'000'000, ""));
      EXPECT_GE(page.jobs.size(), answered.size());
      for (const v1::CompressionJob& job : page.jobs) {
        ASSIGN_OR_RETURN(const JobName name, JobName::Parse(job.name()));
        ASSIGN_OR_RETURN(const auto events, reader.ListEvents(name, 0, 0));
        EXPECT_EQ(events.size(), 1u) << name.ToString();
      }
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST_F(SqliteJobStoreTest, ReadsAtOnceOrNotAtAll) {
  SqliteJobStoreOptions options;
  options.folder = folder_.path();
  options.reader_count = 1;
  const auto store = OpenSqliteJobStore(options).value();
  ASSERT_TRUE(InsertJob(*store, 1).ok());
  const auto look = [](StoreReader& reader) { return reader.ShowJob(Name(1)).status(); };
  EXPECT_EQ(store->ReadAtOnce(look), absl::OkStatus());
  const absl::Status read = store->Read([&](StoreReader&) {
    EXPECT_EQ(store->ReadAtOnce(look), std::nullopt) << "the only connection is out";
    return absl::OkStatus();
  });
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_EQ(store->ReadAtOnce(look), absl::OkStatus());
}

// Lists walk indexes: no look at every job, no sort of more than a page.
TEST_F(SqliteJobStoreTest, ListsUseTheIndexOfEveryState) {
  ASSERT_TRUE(Open().ok());
  const auto connection = SqliteConnection::Open(folder_.path() + "/jobs.sqlite",
                                                 SqliteConnection::Access::kReadOnly, "");
  ASSERT_TRUE(connection.ok()) << connection.status();
  const auto plan = [&](size_t states, size_t labels) {
    std::string text;
    auto statement =
        (*connection)->Prepare(absl::StrCat("EXPLAIN QUERY PLAN ", ListJobsSql(states, labels)));
    EXPECT_TRUE(statement.ok()) << statement.status();
    while (*statement->Step()) absl::StrAppend(&text, statement->Bytes(3), "\n");
    return text;
  };
  EXPECT_THAT(plan(0, 0), testing::Eq("SEARCH jobs USING INDEX jobs_by_project (project=? AND "
                                      "id<?)\n"));
  for (const size_t states : {1, 2, 8}) {
    const std::string text = plan(states, 0);
    size_t walks = 0;
    for (const auto line : absl::StrSplit(text, '\n')) {
      walks += absl::StrContains(line,
                                 "SEARCH jobs USING COVERING INDEX jobs_by_state (project=? "
                                 "AND state=? AND id<?)");
    }
    EXPECT_EQ(walks, states) << text;
    EXPECT_THAT(text, testing::Not(HasSubstr("SCAN jobs")));
  }
  EXPECT_THAT(plan(2, 2), HasSubstr("job_labels_by_value (project=? AND key=? AND value=? AND "
                                    "job_id<?)"));
}

class DiskFaultTest : public SqliteJobStoreTest {
 protected:
  DiskFaultTest() : vfs_("disk-fault-test") {}

  // Jobs 0..9 are stored; while `fail` holds, 10..19 are refused; after `heal`, 20..29 work. All
  // that was answered, and nothing that was refused, is there before and after reopening.
  void FailInBetween(std::function<void()> fail, std::function<void()> heal) {
    auto store = Open(vfs_.name());
    ASSERT_TRUE(store.ok()) << store.status();
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(InsertJob(**store, i).ok());
    fail();
    std::vector<std::thread> callers;
    for (int i = 10; i < 20; ++i) {
      callers.emplace_back([&, i] {
        const absl::Status status = InsertJob(**store, i);
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(folder_.path()));
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_TRUE(FindJob(**store, 3).ok());  // Reads go on.
    heal();
    for (int i = 20; i < 30; ++i) {
      const absl::Status status = InsertJob(**store, i);
      ASSERT_TRUE(status.ok()) << status;
    }
    for (int round = 0; round < 2; ++round) {
      for (int i = 0; i < 30; ++i) {
        EXPECT_EQ(FindJob(**store, i).code(),
                  i >= 10 && i < 20 ? absl::StatusCode::kNotFound : absl::StatusCode::kOk)
            << i;
      }
      store->reset();
      store = Open();
      ASSERT_TRUE(store.ok()) << store.status();
    }
  }

  FaultySqliteVfs vfs_;
};

TEST_F(DiskFaultTest, FullDiskIsUnavailableUntilThereIsSpace) {
  FailInBetween([&] { vfs_.FailWrites(SQLITE_FULL); }, [&] { vfs_.FailWrites(SQLITE_OK); });
}

TEST_F(DiskFaultTest, WriteErrorIsUnavailable) {
  FailInBetween([&] { vfs_.FailWrites(SQLITE_IOERR_WRITE); }, [&] { vfs_.FailWrites(SQLITE_OK); });
}

TEST_F(DiskFaultTest, FailedSyncIsUnavailable) {
  FailInBetween([&] { vfs_.FailSyncs(SQLITE_IOERR_FSYNC); }, [&] { vfs_.FailSyncs(SQLITE_OK); });
}

// Refused for a job that its batch did not get onto the disk.
TEST_F(DiskFaultTest, ARefusalThatRestsOnALostWriteIsNotGivenOut) {
  auto store = Open(vfs_.name());
  ASSERT_TRUE(store.ok()) << store.status();
  std::atomic<bool> started = false, go_on = false;
  std::thread first([&] {
    const absl::Status status = (*store)->Transact([&](StoreTransaction&) {
      started = true;
      started.notify_one();
      go_on.wait(false);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;  // It wrote nothing.
  });
  started.wait(false);
  vfs_.FailSyncs(SQLITE_IOERR_FSYNC);
  constexpr int kCallers = 8;
  std::atomic<int> calling = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&] {
      ++calling;
      const absl::Status status = InsertJob(**store, 1);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    });
  }
  while (calling < kCallers) std::this_thread::yield();
  go_on = true;
  go_on.notify_one();
  first.join();
  for (std::thread& caller : callers) caller.join();
  vfs_.FailSyncs(SQLITE_OK);
  EXPECT_TRUE(InsertJob(**store, 1).ok());
}

TEST_F(DiskFaultTest, BodyCannotHideAReadError) {
  {
    auto store = Open(vfs_.name());
    ASSERT_TRUE(store.ok());
    ASSERT_TRUE(InsertJob(**store, 1).ok());
  }
  auto store = Open(vfs_.name());  // Nothing of the job is cached.
  ASSERT_TRUE(store.ok());
  vfs_.FailReads(SQLITE_IOERR_READ);
  const absl::Status status = (*store)->Transact([&](StoreTransaction& transaction) {
    EXPECT_EQ(transaction.GetJob(Name(1)).status().code(), absl::StatusCode::kUnavailable);
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(FindJob(**store, 1).code(), absl::StatusCode::kUnavailable);
  vfs_.FailReads(SQLITE_OK);
  EXPECT_TRUE(FindJob(**store, 1).ok());
  EXPECT_TRUE(InsertJob(**store, 2).ok());
}

TEST_F(DiskFaultTest, MigrationIsAllOrNothing) {
  vfs_.FailSyncs(SQLITE_IOERR_FSYNC);
  EXPECT_EQ(Open(vfs_.name()).status().code(), absl::StatusCode::kUnavailable);
  vfs_.FailSyncs(SQLITE_OK);
  auto store = Open(vfs_.name());
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(InsertJob(**store, 1).ok());
}

}  // namespace
}  // namespace qpruner::server
