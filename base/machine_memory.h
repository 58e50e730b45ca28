// How much memory a process may count on.
#ifndef QPRUNER_BASE_MACHINE_MEMORY_H_
#define QPRUNER_BASE_MACHINE_MEMORY_H_

#include <cstdint>

namespace qpruner {

// Bytes that this machine has, or less: what the process's control group (version 2 or 1; a
// container sees its own) or its own limit (RLIMIT_DATA) allows.
int64_t MachineMemory();

}  // namespace qpruner

#endif  // QPRUNER_BASE_MACHINE_MEMORY_H_
