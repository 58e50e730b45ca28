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

std::string CpuShares::Describe() const {
  const Sample end = Take();
  const double seconds = absl::ToDoubleSeconds(end.time - begin_.time);
  const double server = (end.server - begin_.server) / seconds;
  const double database = (end.database - begin_.database) / seconds;
  const double generator = (end.generator - begin_.generator) / seconds;
  const double machine = (end.machine - begin_.machine) / seconds;
  return absl::StrFormat("cores: server %.2f, generator %.2f, database %.2f, others %.2f", server,
                         generator, database,
                         std::max(0.0, machine - server - database - generator));
}

}  // namespace qpruner::load
