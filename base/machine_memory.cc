#include "base/machine_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace qpruner {

int64_t MachineMemory() {
  int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  // "max" does not parse and means no limit.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;
    if (std::ifstream(path) >> limit && limit > 0) memory = std::min(memory, limit);
  }
  rlimit own{};
  if (getrlimit(RLIMIT_DATA, &own) == 0 && own.rlim_cur < static_cast<rlim_t>(memory)) {
    memory = static_cast<int64_t>(own.rlim_cur);
  }
  return memory;
}

}  // namespace qpruner
