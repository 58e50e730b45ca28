#include "worker/engine/confinement/confinement.h"

#include <fcntl.h>
#include <link.h>
#include <linux/landlock.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/machine_memory.h"
#include "base/status_macros.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;

// LANDLOCK_ACCESS_FS_TRUNCATE, which came after Debian 12's headers.
constexpr uint64_t kTruncate = 1ULL << 14;
constexpr uint64_t kRead = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
// Of the first version; REFER (2) and TRUNCATE (3) came later.
constexpr uint64_t kWrite1 = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
                             LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                             LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
                             LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                             LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;
// What a rule about a file, not a folder, may grant.
constexpr uint64_t kOfFiles =
    LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate;

// What LibTorch, a device's driver and the C library read while they work.
constexpr const char* kSystemPaths[] = {
    "/usr", "/lib", "/lib64", "/proc", "/sys", "/dev", "/run/nvidia-persistenced",
    // Not all of /etc: keys and tokens are kept there.
    "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group",
    "/etc/ssl/openssl.cnf", "/etc/OpenCL", "/etc/vulkan"};

// glibc has no wrappers for these.
int LandlockVersion() {
  return static_cast<int>(
      syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION));
}

absl::Status Allow(int ruleset, const std::string& path, uint64_t access) {
  const int fd = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot open ", path));
  const absl::Cleanup close_fd = [fd] { close(fd); };
  struct stat status {};
  if (fstat(fd, &status) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("Cannot see ", path));
  landlock_path_beneath_attr rule{.allowed_access = access, .parent_fd = fd};
  if (!S_ISDIR(status.st_mode)) rule.allowed_access &= kOfFiles;
  if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot confine to ", path));
  }
  return absl::OkStatus();
}

// Folders of the program and of the libraries it has loaded: others may be loaded from there.
std::set<std::string> LoadedFolders() {
  std::set<std::string> folders;
  std::error_code ignored;
  folders.insert(fs::read_symlink("/proc/self/exe", ignored).parent_path().string());
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* found) {
        std::error_code error;
        const fs::path path = fs::canonical(object->dlpi_name, error);
        if (!error) static_cast<std::set<std::string>*>(found)->insert(path.parent_path().string());
        return 0;
      },
      &folders);
  folders.erase("");
  return folders;
}

absl::Status ConfineFiles(const ConfinementOptions& options, Confinement& confinement) {
  const int version = LandlockVersion();
  if (version < 1) {
    confinement.missing.push_back(
        absl::StrCat("files: the kernel has no Landlock (", strerror(errno), ")"));
    return absl::OkStatus();
  }
  uint64_t write = kWrite1;
  if (version >= 2) write |= LANDLOCK_ACCESS_FS_REFER;
  if (version >= 3) write |= kTruncate;
  const bool confine_reading = !options.readable.empty();
  const landlock_ruleset_attr handled{.handled_access_fs = write | (confine_reading ? kRead : 0)};
  const int ruleset =
      static_cast<int>(syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0));
  if (ruleset < 0) return absl::ErrnoToStatus(errno, "Cannot confine files");
  const absl::Cleanup close_ruleset = [ruleset] { close(ruleset); };

  for (const std::string& folder : options.writable) {
    RETURN_IF_ERROR(Allow(ruleset, folder, handled.handled_access_fs));
  }
  // Of existing files only: nothing can be made there.
  constexpr uint64_t kWriteFiles = LANDLOCK_ACCESS_FS_WRITE_FILE;
  RETURN_IF_ERROR(Allow(ruleset, "/dev", kWriteFiles | (confine_reading ? kRead : 0)));
  if (confine_reading) {
    for (const std::string& folder : options.readable) {
      RETURN_IF_ERROR(Allow(ruleset, folder, kRead));
    }
    std::set<std::string> folders = LoadedFolders();
    folders.insert(std::begin(kSystemPaths), std::end(kSystemPaths));
    for (const std::string& folder : folders) {
      if (const absl::Status status = Allow(ruleset, folder, kRead); !absl::IsNotFound(status)) {
        RETURN_IF_ERROR(status);
      }
    }
  }
  if (syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
    return absl::ErrnoToStatus(errno, "Cannot confine files");
  }
  confinement.files = true;
  return absl::OkStatus();
}

// Refused with EPERM, so that a library that tries gets an ordinary error.
void ConfineSystemCalls(const ConfinementOptions& options, Confinement& confinement) {
  const scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  const absl::Cleanup release = [filter] { seccomp_release(filter); };
  int error = filter == nullptr ? -ENOMEM : 0;
  const auto refuse = [&](int call) {
    if (error == 0) error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 0);
  };
  const auto refuse_if = [&](int call, scmp_arg_cmp first) {
    if (error == 0) error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 1, first);
  };
  // No network, and none of this machine's services, which would start programs for it. io_uring
  // makes sockets, too.
  if (options.local_sockets) {
    refuse_if(SCMP_SYS(socket), SCMP_A0(SCMP_CMP_NE, AF_UNIX));
  } else {
    refuse(SCMP_SYS(socket));
  }
  refuse(SCMP_SYS(io_uring_setup));
  // No signals to others.
  const auto own = static_cast<scmp_datum_t>(getpid());
  refuse_if(SCMP_SYS(kill), SCMP_A0(SCMP_CMP_NE, own));
  refuse_if(SCMP_SYS(tgkill), SCMP_A0(SCMP_CMP_NE, own));
  refuse(SCMP_SYS(tkill));
  refuse(SCMP_SYS(pidfd_send_signal));
  // Threads, but no other process: it would outlive the task in a group of its own, and have limits
  // of its own. Nor a namespace in which it would be root, which threads cannot have. A filter
  // cannot look into clone3's arguments; the C library goes on with clone where there is no clone3.
  refuse_if(SCMP_SYS(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
  if (error == 0) error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  for (const int call : {SCMP_SYS(fork), SCMP_SYS(vfork), SCMP_SYS(setsid), SCMP_SYS(setpgid)}) {
    refuse(call);
  }
  // No memory that RLIMIT_DATA does not count. A GPU's driver needs some.
  if (!options.local_sockets) {
    refuse(SCMP_SYS(memfd_create));
    refuse(SCMP_SYS(shmget));
    constexpr scmp_datum_t kShared = MAP_SHARED | MAP_ANONYMOUS;
    if (error == 0) {
      error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(mmap), 1,
                               SCMP_A3(SCMP_CMP_MASKED_EQ, kShared, kShared));
    }
  }
  // No other program.
  refuse(SCMP_SYS(execve));
  refuse(SCMP_SYS(execveat));
  // Nothing of other processes, nothing of the kernel's configuration.
  for (const int call : {SCMP_SYS(ptrace),
                         SCMP_SYS(process_vm_readv),
                         SCMP_SYS(process_vm_writev),
                         SCMP_SYS(pidfd_getfd),
                         SCMP_SYS(kcmp),
                         SCMP_SYS(bpf),
                         SCMP_SYS(perf_event_open),
                         SCMP_SYS(userfaultfd),
                         SCMP_SYS(keyctl),
                         SCMP_SYS(add_key),
                         SCMP_SYS(request_key),
                         SCMP_SYS(mount),
                         SCMP_SYS(umount2),
                         SCMP_SYS(pivot_root),
                         SCMP_SYS(chroot),
                         SCMP_SYS(unshare),
                         SCMP_SYS(setns),
                         SCMP_SYS(init_module),
                         SCMP_SYS(finit_module),
                         SCMP_SYS(delete_module),
                         SCMP_SYS(kexec_load),
                         SCMP_SYS(reboot),
                         SCMP_SYS(swapon),
                         SCMP_SYS(swapoff)}) {
    refuse(call);
  }
  // Who may set its processors again has no bound on them. It is told that it did: OpenMP, which
  // binds its threads if the environment says so, makes none if it cannot.
  if (options.cpus > 0 && error == 0) {
    error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(0), SCMP_SYS(sched_setaffinity), 0);
  }
  if (error == 0) error = seccomp_load(filter);
  if (error == 0) {
    confinement.system_calls = true;
  } else {
    confinement.missing.push_back(absl::StrCat("network: seccomp failed (", strerror(-error), ")"));
  }
}

absl::Status SetLimit(__rlimit_resource resource, int64_t value, absl::string_view what) {
  rlimit limit{};
  getrlimit(resource, &limit);
  limit.rlim_max = std::min(limit.rlim_max, static_cast<rlim_t>(value));
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(resource, &limit) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("Cannot limit ", what));
  }
  return absl::OkStatus();
}

// Threads are made with the processors of the one that makes them.
absl::Status LimitProcessors(const ConfinementOptions& options, Confinement& confinement) {
  if (options.cpus == 0) return absl::OkStatus();
  cpu_set_t own;
  if (sched_getaffinity(0, sizeof own, &own) != 0) {
    return absl::ErrnoToStatus(errno, "Cannot see the processors");
  }
  std::vector<int> allowed;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &own)) allowed.push_back(cpu);
  }
  const auto there = static_cast<int64_t>(allowed.size());
  confinement.cpus = static_cast<int>(std::min(options.cpus, there));
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  for (int i = 0; i < confinement.cpus; ++i) {
    CPU_SET(allowed[static_cast<size_t>((options.first_cpu % there + i) % there)], &chosen);
  }
  if (sched_setaffinity(0, sizeof chosen, &chosen) != 0) {
    return absl::ErrnoToStatus(errno, "Cannot limit processors");
  }
  return absl::OkStatus();
}

absl::Status LimitResources(const ConfinementOptions& options, Confinement& confinement) {
  // A core file would be the size of the model.
  RETURN_IF_ERROR(SetLimit(RLIMIT_CORE, 0, "core files"));
  RETURN_IF_ERROR(SetLimit(RLIMIT_NOFILE, options.open_files, "open files"));
  if (options.file_bytes > 0) {
    // The write then fails instead of ending the process.
    signal(SIGXFSZ, SIG_IGN);
    RETURN_IF_ERROR(SetLimit(RLIMIT_FSIZE, options.file_bytes, "file sizes"));
  }
  // If memory is short all the same, this process goes first, not the agent or the server.
  std::ofstream("/proc/self/oom_score_adj") << "1000";
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  confinement.missing.push_back("memory: a sanitizer reserves more than there is");
#else
  confinement.memory_bytes = options.memory_bytes > 0 ? options.memory_bytes : MachineMemory();
  RETURN_IF_ERROR(SetLimit(RLIMIT_DATA, confinement.memory_bytes, "memory"));
#endif
  return absl::OkStatus();
}

}  // namespace

std::string Confinement::Describe() const {
  std::vector<std::string> parts;
  if (files) parts.emplace_back("files");
  if (system_calls) parts.emplace_back("network");
  if (memory_bytes > 0) {
    parts.push_back(absl::StrFormat("%.1f GB of memory", static_cast<double>(memory_bytes) / 1e9));
  }
  if (cpus > 0) parts.push_back(absl::StrCat(cpus, cpus == 1 ? " processor" : " processors"));
  return parts.empty() ? "nothing" : absl::StrJoin(parts, ", ");
}

absl::Status Confine(const ConfinementOptions& options, Confinement& confinement) {
  confinement = {};
  if (options.memory_bytes < 0 || options.file_bytes < 0 || options.open_files < 16 ||
      options.cpus < 0 || options.first_cpu < 0) {
    return absl::InvalidArgumentError(
        "Limits of memory, files and processors must not be negative, open files at least 16");
  }
  RETURN_IF_ERROR(LimitProcessors(options, confinement));
  RETURN_IF_ERROR(LimitResources(options, confinement));
  // Both of the following ask for it; libseccomp would set it itself.
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return absl::ErrnoToStatus(errno, "Cannot give up new privileges");
  }
  RETURN_IF_ERROR(ConfineFiles(options, confinement));
  ConfineSystemCalls(options, confinement);
  return absl::OkStatus();
}

}  // namespace qpruner::engine
