// The embedded JobStore: one SQLite file in the server's data folder.
//
// One thread writes. It takes all the transactions that wait, runs each in a savepoint of one SQL
// transaction, and commits once: so many callers share one fsync (group commit), and none returns
// before its change is on disk. Reads run beside it on connections of their own, each on a snapshot
// of the write-ahead log.
#ifndef QPRUNER_SERVER_STORE_SQLITE_JOB_STORE_H_
#define QPRUNER_SERVER_STORE_SQLITE_JOB_STORE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/job_store.h"

namespace qpruner::server {

struct SqliteJobStoreOptions {
  // Created if it is not there. Holds jobs.sqlite, its write-ahead log and a lock file.
  std::string folder;
  // Connections for Read: this many run at once, others wait.
  int reader_count = 4;
  // Length of the write-ahead log, in pages of 4 KiB, at which it is copied into the file. Longer
  // means fewer syncs but longer ones: writers wait meanwhile.
  int checkpoint_pages = 4000;
  // Name of a registered SQLite VFS; empty for the default. Tests make disks fail with it.
  std::string vfs;
};

// FAILED_PRECONDITION: another process has the folder open, a newer QPruner wrote the file, or the
// file is not a QPruner store. DATA_LOSS: the file is damaged. Other codes: the folder cannot be
// used. The calls on the store must have returned when it is destroyed.
absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(SqliteJobStoreOptions options);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_SQLITE_JOB_STORE_H_
