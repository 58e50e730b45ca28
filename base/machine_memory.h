// How much memory a process may count on.
#ifndef QPRUNER_BASE_MACHINE_MEMORY_H_
#define QPRUNER_BASE_MACHINE_MEMORY_H_

#include <cstdint>

namespace qpruner {

// Bytes that this machine has, or that the process's control group (version 2 or 1) allows it, as a
// container sees its own.
int64_t MachineMemory();

}  // namespace qpruner

#endif  // QPRUNER_BASE_MACHINE_MEMORY_H_
