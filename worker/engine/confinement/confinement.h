// What a process gives up for good before it reads its first foreign byte.
//
// Model files are hostile input. Readers are strict, but should one of them be taken over all the
// same, the process can then write nothing but its own output, reach no network, start no program
// or process, and neither fill the machine's memory nor, where that was asked for, take all of its
// processors. The agent, which holds the token and the connection to the server, is another
// process.
#ifndef QPRUNER_WORKER_ENGINE_CONFINEMENT_CONFINEMENT_H_
#define QPRUNER_WORKER_ENGINE_CONFINEMENT_CONFINEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace qpruner::engine {

struct ConfinementOptions {
  // Folders, which must be there, below which files may be made, changed and removed. Devices may
  // be written to as well.
  std::vector<std::string> writable;
  // Folders below which files may be read, besides the writable ones, the system's and those of the
  // libraries that are loaded. Empty: wherever the user may.
  std::vector<std::string> readable;
  // Private memory that can be written to; mapped files do not count (RLIMIT_DATA). 0: what the
  // machine or the control group has. Beyond it allocation fails; no other process is ended for it.
  int64_t memory_bytes = 0;
  // Of a file that is written. 0: no limit.
  int64_t file_bytes = 0;
  int64_t open_files = 4096;
  // How many of the processors that it has now all threads together may run on, counted from the
  // `first_cpu`th (from 0) and on from the lowest again: processes that are given different ones
  // stay out of each other's way. 0: all. More than there are is all of them, too.
  int64_t cpus = 0;
  int64_t first_cpu = 0;
  // Whether sockets of this machine may be made, as a GPU's driver does.
  bool local_sockets = false;
};

// What holds now.
struct Confinement {
  bool files = false;         // Landlock: `writable` and `readable`.
  bool system_calls = false;  // seccomp: no sockets, no other process, no look at others.
  int64_t memory_bytes = 0;   // 0: no limit.
  int cpus = 0;               // 0: no limit but what the process had before.
  // Why something does not hold, one reason each: an old kernel, or one that does not allow it.
  std::vector<std::string> missing;

  // "files, network, 24.0 GB of memory, 4 processors".
  std::string Describe() const;
};

// Gives up what `options` do not leave, for this process and all it will start. Call it while there
// is one thread. INVALID_ARGUMENT, NOT_FOUND: a folder or number of `options`.
absl::Status Confine(const ConfinementOptions& options, Confinement& confinement);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_CONFINEMENT_CONFINEMENT_H_
