#include "tests/testing/process_usage.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

double Seconds(int64_t ticks) {
  static const double per_second = static_cast<double>(sysconf(_SC_CLK_TCK));
  return static_cast<double>(ticks) / per_second;
}

// False: the process is gone.
bool ReadProcess(pid_t pid, ProcessInfo& info) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return false;
  // pid (program) state parent ...; the program may hold spaces and parentheses.
  const size_t open = line.find('('), close = line.rfind(')');
  if (open == std::string::npos || close == std::string::npos) return false;
  info.pid = pid;
  info.program = line.substr(open + 1, close - open - 1);
  std::istringstream rest(line.substr(close + 1));
  int64_t skipped = 0, user = 0, system = 0, children_user = 0, children_system = 0;
  rest >> info.state >> info.parent;
  // Fields 5 to 13 of proc(5); utime is the 14th.
  for (int field = 5; field <= 13; ++field) rest >> skipped;
  rest >> user >> system >> children_user >> children_system;
  info.cpu_seconds = Seconds(user + system + children_user + children_system);
  return true;
}

// The number of a line "NAME: number kB" or "NAME: number" of /proc/PID/status; 0 if it is not
// there.
int64_t StatusNumber(pid_t pid, const std::string& name) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/status"));
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, name.size() + 1, name + ":") != 0) continue;
    std::istringstream rest(line.substr(name.size() + 1));
    int64_t number = 0;
    rest >> number;
    return number;
  }
  return 0;
}

}  // namespace

std::vector<ProcessInfo> ListProcesses() {
  std::vector<ProcessInfo> processes;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc", ignored)) {
    int pid = 0;
    ProcessInfo info;
    if (absl::SimpleAtoi(entry.path().filename().string(), &pid) && ReadProcess(pid, info)) {
      processes.push_back(std::move(info));
    }
  }
  return processes;
}

std::vector<ProcessInfo> ProcessTree(pid_t root) {
  const std::vector<ProcessInfo> all = ListProcesses();
  std::set<pid_t> members = {root};
  std::vector<ProcessInfo> tree;
  // A child may be listed before its parent: until nothing is added.
  for (size_t before = 0; before != members.size();) {
    before = members.size();
    for (const ProcessInfo& process : all) {
      if (members.count(process.parent) != 0) members.insert(process.pid);
    }
  }
  for (const ProcessInfo& process : all) {
    if (members.count(process.pid) != 0 && process.state != 'Z' && process.state != 'X') {
      tree.push_back(process);
    }
  }
  return tree;
}

double TreeCpuSeconds(pid_t root) {
  double seconds = 0;
  for (const ProcessInfo& process : ProcessTree(root)) seconds += process.cpu_seconds;
  return seconds;
}

double MachineCpuSeconds() {
  std::ifstream file("/proc/stat");
  std::string name;
  int64_t user = 0, nice = 0, system = 0;
  file >> name >> user >> nice >> system;
  return Seconds(user + nice + system);
}

int64_t ResidentBytes(pid_t pid) { return StatusNumber(pid, "VmRSS") << 10; }
int64_t PeakResidentBytes(pid_t pid) { return StatusNumber(pid, "VmHWM") << 10; }
int ThreadCount(pid_t pid) { return static_cast<int>(StatusNumber(pid, "Threads")); }

int OpenFileCount(pid_t pid) {
  std::error_code error;
  fs::directory_iterator files(absl::StrCat("/proc/", pid, "/fd"), error);
  if (error) return -1;
  return static_cast<int>(std::distance(files, fs::directory_iterator()));
}

std::string MachineLoad() {
  std::ifstream file("/proc/loadavg");
  std::string one, five, fifteen;
  file >> one >> five >> fifteen;
  return absl::StrCat(one, " ", five, " ", fifteen);
}

}  // namespace qpruner
