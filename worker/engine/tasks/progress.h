// What a task tells about how far it is.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_PROGRESS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_PROGRESS_H_

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace qpruner::engine {

// Below the output folder: files that are made for the next attempt alone. Below the input folder:
// what an earlier attempt has told as its checkpoint, these files at their paths and outputs below
// kCheckpointOutputs (engine.proto).
inline constexpr char kCheckpointFolder[] = "checkpoint";
inline constexpr char kCheckpointOutputs[] = "checkpoint/outputs";

// Thread-safe. Cheap: may be called for every block.
class ProgressReporter {
 public:
  virtual ~ProgressReporter() = default;
  // `fraction` of the task, 0 to 1.
  virtual void Report(double fraction, const std::string& message) = 0;
  // A line for people. `warning`: someone may want to look.
  virtual void Log(const std::string& text, bool warning = false) = 0;
  // `paths`: durable files below the task's output folder that, all of them together, the next
  // attempt can go on from, in place of those told before. They are not written again under these
  // names, and stay there until the set after the next is told. Reads each of them once: it may
  // take as long as writing them.
  virtual void Checkpoint(const std::vector<std::string>& paths) {}
};

// The part of a task between two fractions. Starting it reports its message.
class Phase {
 public:
  Phase(ProgressReporter& reporter, double from, double to, std::string message)
      : reporter_(reporter), from_(from), to_(to), message_(std::move(message)) {
    Done(0);
  }
  // `fraction` of the phase, 0 to 1.
  void Done(double fraction) const {
    reporter_.Report(from_ + (to_ - from_) * std::clamp(fraction, 0.0, 1.0), message_);
  }
  // As the engine's walks take it. The phase must outlive it.
  std::function<void(double)> Fractions() const {
    return [this](double fraction) { Done(fraction); };
  }
  std::function<void(int64_t)> Blocks(int64_t num_blocks) const {
    return [this, num_blocks](int64_t block) {
      Done(static_cast<double>(block + 1) / static_cast<double>(num_blocks));
    };
  }

 private:
  ProgressReporter& reporter_;
  const double from_;
  const double to_;
  const std::string message_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_PROGRESS_H_
