// What processes use, read from /proc.
#ifndef QPRUNER_TESTS_TESTING_PROCESS_USAGE_H_
#define QPRUNER_TESTS_TESTING_PROCESS_USAGE_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace qpruner {

struct ProcessInfo {
  pid_t pid = 0;
  pid_t parent = 0;
  // The kernel keeps 15 characters.
  std::string program;
  // 'R', 'S', 'Z', ...
  char state = '?';
  // Of the process and its reaped children.
  double cpu_seconds = 0;
};

// Every process that is there now.
std::vector<ProcessInfo> ListProcesses();

// `root` and all processes below it that are there now, zombies left out.
std::vector<ProcessInfo> ProcessTree(pid_t root);

// CPU time of a process and all below it, the ended ones included.
double TreeCpuSeconds(pid_t root);

// CPU time that all processes of the machine have used, all cores together.
double MachineCpuSeconds();

// Bytes of memory that the process has in RAM now, and the most it had. 0: it is gone.
int64_t ResidentBytes(pid_t pid);
int64_t PeakResidentBytes(pid_t pid);

// Files, sockets and pipes that the process has open. -1: it is gone.
int OpenFileCount(pid_t pid);
int ThreadCount(pid_t pid);

// "0.51 0.60 0.70": the machine's load over 1, 5 and 15 minutes.
std::string MachineLoad();

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_PROCESS_USAGE_H_
