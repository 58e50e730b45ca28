// What a task tells about how far it is.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_PROGRESS_H_
#define QPRUNER_WORKER_ENGINE_TASKS_PROGRESS_H_

#include <algorithm>
#include <functional>
#include <string>
#include <utility>

namespace qpruner::engine {

// Thread-safe. Cheap: may be called for every block.
class ProgressReporter {
 public:
  virtual ~ProgressReporter() = default;
  // `fraction` of the task, 0 to 1.
  virtual void Report(double fraction, const std::string& message) = 0;
  // A line for people. `warning`: someone may want to look.
  virtual void Log(const std::string& text, bool warning = false) = 0;
  // `path`: a durable file below the task's output folder that the next attempt can go on from. It
  // must stay there until the one after the next is told.
  virtual void Checkpoint(const std::string& path) {}
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
