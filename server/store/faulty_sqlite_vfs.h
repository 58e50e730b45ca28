// A SQLite file system for tests: it fails on demand and knows what a power cut would leave.
#ifndef QPRUNER_SERVER_STORE_FAULTY_SQLITE_VFS_H_
#define QPRUNER_SERVER_STORE_FAULTY_SQLITE_VFS_H_

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace qpruner::server {

// Passes everything on to SQLite's default file system, unless told to fail. Registered under
// `name` while it lives. Thread-safe.
class FaultySqliteVfs {
 public:
  explicit FaultySqliteVfs(std::string name);
  ~FaultySqliteVfs();
  FaultySqliteVfs(const FaultySqliteVfs&) = delete;
  FaultySqliteVfs& operator=(const FaultySqliteVfs&) = delete;
  const std::string& name() const { return name_; }

  // SQLite's code for each following call of the kind; SQLITE_OK ends it.
  void FailReads(int code);
  void FailWrites(int code);
  void FailSyncs(int code);

  int64_t sync_count() const;
  // Names of files with writes that were not synced.
  std::set<std::string> UnsyncedFiles() const;
  // Writes to `folder` what each file held when it was last synced: the least that is left after
  // the power goes.
  void WriteSyncedFiles(const std::string& folder) const;

 private:
  struct File;
  static const sqlite3_io_methods kMethods;
  static int Open(sqlite3_vfs* vfs, const char* path, sqlite3_file* file, int flags,
                  int* flags_out);
  static int Delete(sqlite3_vfs* vfs, const char* path, int sync_folder);
  static int Read(sqlite3_file* file, void* data, int size, sqlite3_int64 offset);
  static int Write(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset);
  static int Truncate(sqlite3_file* file, sqlite3_int64 size);
  static int Sync(sqlite3_file* file, int flags);

  // Constant after construction.
  const std::string name_;
  sqlite3_vfs* const base_;
  sqlite3_vfs vfs_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  int read_code_ = SQLITE_OK;
  int write_code_ = SQLITE_OK;
  int sync_code_ = SQLITE_OK;
  int64_t sync_count_ = 0;
  std::set<std::string> unsynced_;
  std::map<std::string, std::string> synced_;  // Content by path.
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_FAULTY_SQLITE_VFS_H_
