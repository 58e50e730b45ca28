// Breaks one thing after the other, at random.
#ifndef QPRUNER_TESTS_FAULTS_FAULT_INJECTOR_H_
#define QPRUNER_TESTS_FAULTS_FAULT_INJECTOR_H_

#include <functional>
#include <list>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/faults/fleet.h"

namespace qpruner {

// Used by the fleet's thread.
class FaultInjector {
 public:
  FaultInjector(Fleet& fleet, uint64_t seed);

  // Begins a fault of a random kind; what it did, for people.
  std::string BeginAny();
  // Begins one of this kind: one of kinds().
  std::string Begin(const std::string& kind);
  // Those that this fleet can have.
  std::vector<std::string> kinds() const;
  // Ends the faults whose time is over.
  void EndDue();
  bool any_active() const { return !active_.empty(); }
  // The server is down because a fault wants it so.
  bool server_down() const { return absl::Now() < server_down_until_; }
  absl::Duration Uniform(absl::Duration from, absl::Duration to);

  // Once the jobs have ended without them: completes every task that a silent worker was leased,
  // with a result that is wrong. DATA_LOSS: one was taken.
  absl::Status CompleteStaleLeases();

 private:
  struct Active {
    absl::Time end;
    std::function<void()> undo;
  };
  using Kind = std::function<std::string()>;
  void Until(absl::Duration duration, std::function<void()> undo);
  std::string Cable(TcpProxy& cable, const char* which);
  std::string Stop(pid_t pid, const char* which);
  std::string ShiftClock(ShiftedClock& clock, const char* whose);
  std::string DamageStored();
  std::string DamageCached();
  std::string HoldSilently();
  size_t AnyWorker();

  Fleet& fleet_;
  std::mt19937_64 random_;
  std::map<std::string, Kind> kinds_;
  std::list<Active> active_;
  absl::Time server_down_until_ = absl::InfinitePast();
  std::vector<internal::v1::AcquireTaskResponse> silent_;
  int silent_count_ = 0;
};

}  // namespace qpruner

#endif  // QPRUNER_TESTS_FAULTS_FAULT_INJECTOR_H_
