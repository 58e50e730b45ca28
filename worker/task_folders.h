// Where a task's files lie while it is worked on.
#ifndef QPRUNER_WORKER_TASK_FOLDERS_H_
#define QPRUNER_WORKER_TASK_FOLDERS_H_

#include <string>

#include "absl/status/status.h"

namespace qpruner::worker {

// The folders stay, only what is in them comes and goes: the engine is held to the very folders
// that were there when it started.
struct TaskFolders {
  explicit TaskFolders(const std::string& data_dir);

  std::string inputs;   // Brought by the agent, read by the engine.
  std::string outputs;  // Made by the engine, read by the agent.
  std::string scratch;  // The engine's own.

  // Creates those that are not there.
  absl::Status Create() const;
  // Removes what is in them. Best effort.
  void Clear() const;
};

}  // namespace qpruner::worker

#endif  // QPRUNER_WORKER_TASK_FOLDERS_H_
