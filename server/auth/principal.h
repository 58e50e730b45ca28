// Who makes a call.
#ifndef QPRUNER_SERVER_AUTH_PRINCIPAL_H_
#define QPRUNER_SERVER_AUTH_PRINCIPAL_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qpruner::server {

enum class Role {
  kClient,  // Jobs of its projects.
  kWorker,  // The worker's calls, under its names.
  kAdmin,   // Jobs of all projects.
  kAnyone,  // No authentication is asked for: everything. The peer is trusted.
};

struct Principal {
  std::string id;  // In the audit log.
  Role role = Role::kAnyone;
  std::vector<std::string> projects;  // kClient.
  std::vector<std::string> workers;   // kWorker; a "*" at the end stands for anything.

  bool MayUseProject(absl::string_view project) const;
  bool MayBeWorker(absl::string_view worker) const;
};

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_AUTH_PRINCIPAL_H_
