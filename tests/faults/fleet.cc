#include "tests/faults/fleet.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "tests/testing/process_usage.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

// A file system of `bytes` at `folder`, which goes with this process: it is mounted where only its
// children see it. Why not, where that is not allowed.
absl::Status MountOwnDisk(const std::string& folder, int64_t bytes) {
  static const bool own_view =
      unshare(CLONE_NEWNS) == 0 && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  if (!own_view) return absl::ErrnoToStatus(errno, "no file system can be mounted");
  fs::create_directories(folder);
  if (mount("tmpfs", folder.c_str(), "tmpfs", 0, absl::StrCat("size=", bytes).c_str()) != 0) {
    return absl::ErrnoToStatus(errno, "no file system can be mounted");
  }
  return absl::OkStatus();
}

std::string LogTail(const std::string& path, size_t bytes) {
  std::ifstream file(path);
  const std::string log((std::istreambuf_iterator<char>(file)), {});
  return log.substr(log.size() - std::min(log.size(), bytes));
}

}  // namespace

ShiftedClock::ShiftedClock(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0 || ftruncate(fd, sizeof(int64_t)) != 0) abort();
  void* mapped = mmap(nullptr, sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped == MAP_FAILED) abort();
  shift_ = static_cast<volatile int64_t*>(mapped);
}

ShiftedClock::~ShiftedClock() { munmap(const_cast<int64_t*>(shift_), sizeof(int64_t)); }

void ShiftedClock::Set(absl::Duration shift) { *shift_ = absl::ToInt64Nanoseconds(shift); }

std::vector<std::string> ShiftedClock::Environment() const {
  return {
      absl::StrCat("LD_PRELOAD=", fs::absolute(BuiltProgram("libqpruner_clock_shift.so")).string()),
      absl::StrCat("QPRUNER_CLOCK_SHIFT_FILE=", path_)};
}

absl::StatusOr<std::unique_ptr<Fleet>> Fleet::Start(Options options) {
  std::unique_ptr<Fleet> fleet(new Fleet(std::move(options)));
  Fleet& f = *fleet;
  const std::string& folder = f.folder_.path();
  if (f.options_.disk_bytes > 0) {
    const absl::Status mounted = MountOwnDisk(f.data_dir(), f.options_.disk_bytes);
    f.has_own_disk_ = mounted.ok();
    if (!mounted.ok()) printf("  the disk is never full here: %s\n", mounted.ToString().c_str());
  }
  std::vector<std::string> arguments = {
      "--lease-duration",     absl::FormatDuration(f.options_.lease_duration),
      "--heartbeat-interval", absl::FormatDuration(f.options_.lease_duration / 8),
      "--retry-backoff",      "100ms"};
  if (f.options_.postgres) {
    ASSIGN_OR_RETURN(f.database_, server::PostgresCluster::Start());
    // postgresql:///NAME?user=...&host=...
    const std::string local = f.database_->NewDatabase();
    f.database_cable_ = std::make_unique<TcpProxy>(f.database_->folder() + "/.s.PGSQL.5432");
    const std::string path = local.substr(0, local.find('?'));
    const std::string name = path.substr(path.rfind('/') + 1);
    arguments.insert(arguments.end(),
                     {"--store", "postgres", "--postgres-url",
                      absl::StrCat("postgresql://qpruner@127.0.0.1:", f.database_cable_->port(),
                                   "/", name, "?sslmode=disable"),
                      "--artifacts-dir", f.data_dir() + "/artifacts"});
  }
  f.server_clock_ = std::make_unique<ShiftedClock>(folder + "/server.clock");
  f.workers_clock_ = std::make_unique<ShiftedClock>(folder + "/workers.clock");
  const std::string socket = folder + "/server.sock";
  f.server_ = std::make_unique<ServerProcess>(
      ServerProcess::Options{.folder = folder,
                             .address = "unix:" + socket,
                             .arguments = std::move(arguments),
                             .environment = f.server_clock_->Environment()});
  RETURN_IF_ERROR(f.server_->Start());
  f.workers_cable_ = std::make_unique<TcpProxy>(socket);
  f.jobs_ = v1::JobService::NewStub(f.server_->NewChannel());
  f.worker_calls_ = internal::v1::WorkerService::NewStub(f.server_->NewChannel());
  for (int i = 0; i < f.options_.workers; ++i) {
    f.workers_.push_back({.name = absl::StrCat("worker-", i)});
    RETURN_IF_ERROR(f.StartWorker(static_cast<size_t>(i)));
  }
  return fleet;
}

Fleet::~Fleet() {
  for (Worker& worker : workers_) worker.process.reset();
  server_.reset();
  if (has_own_disk_) umount2(data_dir().c_str(), MNT_DETACH);
}

std::string Fleet::WorkerFolder(size_t worker) const {
  return absl::StrCat(folder_.path(), "/", workers_[worker].name);
}

absl::Status Fleet::StartWorker(size_t index) {
  Worker& worker = workers_[index];
  worker.process.reset();
  ChildProcess::Options child{
      .argv = {BuiltProgram("qpruner-worker"), "--server",
               absl::StrCat("127.0.0.1:", workers_cable_->port()), "--name", worker.name,
               "--data-dir", WorkerFolder(index), "--engine", options_.engine, "--threads", "1"},
      .parent_death_signal = SIGKILL,
      .extra_environment = workers_clock_->Environment(),
      .output_path = WorkerFolder(index) + ".log"};
  child.extra_environment.push_back(
      absl::StrCat("QPRUNER_TASK_MILLISECONDS=", options_.task_milliseconds));
  child.extra_environment.push_back("OMP_WAIT_POLICY=PASSIVE");
  ASSIGN_OR_RETURN(worker.process, ChildProcess::Spawn(child));
  return absl::OkStatus();
}

pid_t Fleet::WorkerPid(size_t worker) const {
  const auto& process = workers_[worker].process;
  return process && !process->Poll() ? process->pid() : 0;
}

std::vector<pid_t> Fleet::Engines() const {
  std::vector<pid_t> engines;
  for (size_t i = 0; i < workers_.size(); ++i) {
    const pid_t worker = WorkerPid(i);
    if (worker == 0) continue;
    for (const ProcessInfo& process : ProcessTree(worker)) {
      if (process.pid != worker) engines.push_back(process.pid);
    }
  }
  return engines;
}

int Fleet::Supervise() {
  int started = 0;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].process && !workers_[i].process->Poll()) continue;
    ++started;
    StartWorker(i).IgnoreError();  // Tried again by the next call.
  }
  return started;
}

absl::Status Fleet::EnsureServer() {
  if (server_->running()) return absl::OkStatus();
  // Its database may be away: its next try comes soon.
  const absl::Status started = server_->Start(absl::Seconds(5));
  if (!started.ok()) server_->Kill();
  return started;
}

void Fleet::FillDisk() {
  const int fd = open((data_dir() + "/ballast").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  // Large steps first: it is quick, and leaves not a page.
  for (const size_t step : {size_t{1} << 20, size_t{4096}}) {
    const std::string bytes(step, 'x');
    while (write(fd, bytes.data(), bytes.size()) > 0) continue;
  }
  close(fd);
}

void Fleet::FreeDisk() { unlink((data_dir() + "/ballast").c_str()); }

absl::Status Fleet::Stop() {
  for (Worker& worker : workers_) worker.process->SignalGroup(SIGTERM);
  std::string left;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (!workers_[i].process->WaitFor(absl::Seconds(20))) {
      absl::StrAppend(&left, " ", workers_[i].name);
    }
    workers_[i].process.reset();
    // Its folders stay, empty.
    for (const fs::directory_entry& entry :
         fs::recursive_directory_iterator(WorkerFolder(i) + "/task")) {
      if (entry.is_directory() && entry.path().parent_path().filename() == "task") continue;
      absl::StrAppend(&left, " ", entry.path().string());
    }
  }
  if (server_->Stop() != 0) absl::StrAppend(&left, " the server");
  for (const ProcessInfo& process : ProcessTree(getpid())) {
    if (process.pid != getpid() && absl::StartsWith(process.program, "qpruner")) {
      absl::StrAppend(&left, " process ", process.program);
    }
  }
  if (left.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("left after SIGTERM:", left));
}

std::string Fleet::LogTails() const {
  std::string text = absl::StrCat("---- server\n", server_->LogTail(6000));
  for (size_t i = 0; i < workers_.size(); ++i) {
    absl::StrAppend(&text, "---- ", workers_[i].name, "\n",
                    LogTail(WorkerFolder(i) + ".log", 2500));
  }
  return text;
}

}  // namespace qpruner
