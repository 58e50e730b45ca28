#include "bench/load/cpu_shares.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "tests/testing/process_usage.h"

namespace qpruner::load {

CpuShares::CpuShares(pid_t server, pid_t database)
    : server_(server), database_(database), begin_(Take()) {}

CpuShares::Sample CpuShares::Take() const {
  Sample sample;
  if (server_ != 0) sample.server = TreeCpuSeconds(server_);
  if (database_ != 0) sample.database = TreeCpuSeconds(database_);
  // Its threads alone: the server and the database are its children.
  for (const ProcessInfo& process : ProcessTree(getpid())) {
    if (process.pid == getpid()) sample.generator = process.cpu_seconds;
  }
  sample.machine = MachineCpuSeconds();
  sample.time = absl::Now();
  return sample;
}

double CpuShares::ServerSeconds() const { return Take().server - begin_.server; }

CpuShares::Cores CpuShares::Measure() const {
  const Sample end = Take();
  const double seconds = absl::ToDoubleSeconds(end.time - begin_.time);
  Cores cores;
  cores.server = (end.server - begin_.server) / seconds;
  cores.generator = (end.generator - begin_.generator) / seconds;
  cores.database = (end.database - begin_.database) / seconds;
  const double machine = (end.machine - begin_.machine) / seconds;
  cores.others = std::max(0.0, machine - cores.server - cores.database - cores.generator);
  return cores;
}

std::string CpuShares::Describe() const {
  const Cores cores = Measure();
  return absl::StrFormat("cores: server %.2f, generator %.2f, database %.2f, others %.2f",
                         cores.server, cores.generator, cores.database, cores.others);
}

}  // namespace qpruner::load
