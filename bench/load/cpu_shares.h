// Who used the machine's cores during a measurement.
#ifndef QPRUNER_BENCH_LOAD_CPU_SHARES_H_
#define QPRUNER_BENCH_LOAD_CPU_SHARES_H_

#include <sys/types.h>

#include <string>

#include "absl/time/time.h"

namespace qpruner::load {

// From construction on.
class CpuShares {
 public:
  // `server` and `database` are process ids; 0: there is none.
  CpuShares(pid_t server, pid_t database);
  // What each used of the machine's cores, on average, until now.
  struct Cores {
    double server = 0;
    double generator = 0;
    double database = 0;
    double others = 0;
  };
  Cores Measure() const;
  // CPU seconds of the server alone.
  double ServerSeconds() const;
  // "cores: server 0.92, generator 0.71, database 0.00, others 0.10".
  std::string Describe() const;

 private:
  struct Sample {
    double server = 0;
    double database = 0;
    double generator = 0;
    double machine = 0;
    absl::Time time;
  };
  Sample Take() const;

  const pid_t server_;
  const pid_t database_;
  const Sample begin_;
};

}  // namespace qpruner::load

#endif  // QPRUNER_BENCH_LOAD_CPU_SHARES_H_
