#include "server/store/faulty_sqlite_vfs.h"

#include <filesystem>
#include <fstream>
#include <utility>

namespace qpruner::server {

// SQLite allocates this with the default file system's own object right behind it.
struct FaultySqliteVfs::File {
  sqlite3_file base;  // First: SQLite sees only this.
  FaultySqliteVfs* owner;
  std::string* path;

  static File* Of(sqlite3_file* file) { return reinterpret_cast<File*>(file); }
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

#define QPRUNER_REAL(file) File::Of(file)->real()

const sqlite3_io_methods FaultySqliteVfs::kMethods = {
    .iVersion = 2,  // Shared memory for the write-ahead log, but no memory-mapped reads.
    .xClose =
        [](sqlite3_file* file) {
          delete File::Of(file)->path;
          return QPRUNER_REAL(file)->pMethods->xClose(QPRUNER_REAL(file));
        },
    .xRead = &FaultySqliteVfs::Read,
    .xWrite = &FaultySqliteVfs::Write,
    .xTruncate = &FaultySqliteVfs::Truncate,
    .xSync = &FaultySqliteVfs::Sync,
    .xFileSize =
        [](sqlite3_file* file, sqlite3_int64* size) {
          return QPRUNER_REAL(file)->pMethods->xFileSize(QPRUNER_REAL(file), size);
        },
    .xLock =
        [](sqlite3_file* file, int level) {
          return QPRUNER_REAL(file)->pMethods->xLock(QPRUNER_REAL(file), level);
        },
    .xUnlock =
        [](sqlite3_file* file, int level) {
          return QPRUNER_REAL(file)->pMethods->xUnlock(QPRUNER_REAL(file), level);
        },
    .xCheckReservedLock =
        [](sqlite3_file* file, int* result) {
          return QPRUNER_REAL(file)->pMethods->xCheckReservedLock(QPRUNER_REAL(file), result);
        },
    .xFileControl =
        [](sqlite3_file* file, int operation, void* argument) {
          return QPRUNER_REAL(file)->pMethods->xFileControl(QPRUNER_REAL(file), operation,
                                                            argument);
        },
    .xSectorSize =
        [](sqlite3_file* file) {
          return QPRUNER_REAL(file)->pMethods->xSectorSize(QPRUNER_REAL(file));
        },
    .xDeviceCharacteristics =
        [](sqlite3_file* file) {
          return QPRUNER_REAL(file)->pMethods->xDeviceCharacteristics(QPRUNER_REAL(file));
        },
    .xShmMap =
        [](sqlite3_file* file, int page, int size, int extend, void volatile** memory) {
          return QPRUNER_REAL(file)->pMethods->xShmMap(QPRUNER_REAL(file), page, size, extend,
                                                       memory);
        },
    .xShmLock =
        [](sqlite3_file* file, int offset, int count, int flags) {
          return QPRUNER_REAL(file)->pMethods->xShmLock(QPRUNER_REAL(file), offset, count, flags);
        },
    .xShmBarrier =
        [](sqlite3_file* file) { QPRUNER_REAL(file)->pMethods->xShmBarrier(QPRUNER_REAL(file)); },
    .xShmUnmap =
        [](sqlite3_file* file, int remove) {
          return QPRUNER_REAL(file)->pMethods->xShmUnmap(QPRUNER_REAL(file), remove);
        },
};

FaultySqliteVfs::FaultySqliteVfs(std::string name)
    : name_(std::move(name)), base_(sqlite3_vfs_find(nullptr)), vfs_(*base_) {
  vfs_.zName = name_.c_str();
  vfs_.pNext = nullptr;
  vfs_.pAppData = this;
  vfs_.szOsFile = static_cast<int>(sizeof(File)) + base_->szOsFile;
  vfs_.xOpen = &FaultySqliteVfs::Open;
  vfs_.xDelete = &FaultySqliteVfs::Delete;
  // The others are the default's; they look only at its pAppData.
  vfs_.xAccess = [](sqlite3_vfs* vfs, const char* path, int flags, int* result) {
    sqlite3_vfs* base = static_cast<FaultySqliteVfs*>(vfs->pAppData)->base_;
    return base->xAccess(base, path, flags, result);
  };
  vfs_.xFullPathname = [](sqlite3_vfs* vfs, const char* path, int size, char* result) {
    sqlite3_vfs* base = static_cast<FaultySqliteVfs*>(vfs->pAppData)->base_;
    return base->xFullPathname(base, path, size, result);
  };
  sqlite3_vfs_register(&vfs_, /*makeDflt=*/0);
}

FaultySqliteVfs::~FaultySqliteVfs() { sqlite3_vfs_unregister(&vfs_); }

void FaultySqliteVfs::FailReads(int code) {
  std::lock_guard lock(mutex_);
  read_code_ = code;
}

void FaultySqliteVfs::FailWrites(int code) {
  std::lock_guard lock(mutex_);
  write_code_ = code;
}

void FaultySqliteVfs::FailSyncs(int code) {
  std::lock_guard lock(mutex_);
  sync_code_ = code;
}

int64_t FaultySqliteVfs::sync_count() const {
  std::lock_guard lock(mutex_);
  return sync_count_;
}

std::set<std::string> FaultySqliteVfs::UnsyncedFiles() const {
  std::lock_guard lock(mutex_);
  return unsynced_;
}

void FaultySqliteVfs::WriteSyncedFiles(const std::string& folder) const {
  std::lock_guard lock(mutex_);
  for (const auto& [path, content] : synced_) {
    std::ofstream(std::filesystem::path(folder) / std::filesystem::path(path).filename(),
                  std::ios::binary)
        << content;
  }
}

int FaultySqliteVfs::Open(sqlite3_vfs* vfs, const char* path, sqlite3_file* file, int flags,
                          int* flags_out) {
  auto* self = static_cast<FaultySqliteVfs*>(vfs->pAppData);
  File* opened = File::Of(file);
  opened->base.pMethods = nullptr;  // Until it is open: then SQLite does not close it.
  const int code = self->base_->xOpen(self->base_, path, opened->real(), flags, flags_out);
  if (code != SQLITE_OK) return code;
  opened->owner = self;
  opened->path = new std::string(path == nullptr ? "" : path);
  opened->base.pMethods = &kMethods;
  return SQLITE_OK;
}

int FaultySqliteVfs::Delete(sqlite3_vfs* vfs, const char* path, int sync_folder) {
  auto* self = static_cast<FaultySqliteVfs*>(vfs->pAppData);
  {
    std::lock_guard lock(self->mutex_);
    self->unsynced_.erase(path);
    // Without a sync of the folder, the file may be back after a power cut.
    if (sync_folder != 0) self->synced_.erase(path);
  }
  return self->base_->xDelete(self->base_, path, sync_folder);
}

int FaultySqliteVfs::Read(sqlite3_file* file, void* data, int size, sqlite3_int64 offset) {
  File* self = File::Of(file);
  {
    std::lock_guard lock(self->owner->mutex_);
    if (self->owner->read_code_ != SQLITE_OK) return self->owner->read_code_;
  }
  return self->real()->pMethods->xRead(self->real(), data, size, offset);
}

int FaultySqliteVfs::Write(sqlite3_file* file, const void* data, int size, sqlite3_int64 offset) {
  File* self = File::Of(file);
  {
    std::lock_guard lock(self->owner->mutex_);
    if (self->owner->write_code_ != SQLITE_OK) return self->owner->write_code_;
    self->owner->unsynced_.insert(*self->path);
  }
  return self->real()->pMethods->xWrite(self->real(), data, size, offset);
}

int FaultySqliteVfs::Truncate(sqlite3_file* file, sqlite3_int64 size) {
  File* self = File::Of(file);
  {
    std::lock_guard lock(self->owner->mutex_);
    self->owner->unsynced_.insert(*self->path);
  }
  return self->real()->pMethods->xTruncate(self->real(), size);
}

int FaultySqliteVfs::Sync(sqlite3_file* file, int flags) {
  File* self = File::Of(file);
  std::lock_guard lock(self->owner->mutex_);
  if (self->owner->sync_code_ != SQLITE_OK) return self->owner->sync_code_;
  const int code = self->real()->pMethods->xSync(self->real(), flags);
  if (code != SQLITE_OK) return code;
  ++self->owner->sync_count_;
  self->owner->unsynced_.erase(*self->path);
  // Through SQLite's own descriptor: closing another one would drop its locks.
  sqlite3_int64 size = 0;
  self->real()->pMethods->xFileSize(self->real(), &size);
  std::string content(static_cast<size_t>(size), '\0');
  self->real()->pMethods->xRead(self->real(), content.data(), static_cast<int>(size), 0);
  self->owner->synced_[*self->path] = std::move(content);
  return SQLITE_OK;
}

#undef QPRUNER_REAL

}  // namespace qpruner::server
