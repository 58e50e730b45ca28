// Secrets that come in the environment.
#ifndef QPRUNER_BASE_ENVIRONMENT_SECRET_H_
#define QPRUNER_BASE_ENVIRONMENT_SECRET_H_

#include <string>

namespace qpruner {

// The variable's value, empty if there is none, which is then gone: from the environment that
// children inherit, and from /proc/PID/environ, where other processes of the user look. Call it
// while there is one thread.
std::string TakeFromEnvironment(const char* name);

}  // namespace qpruner

#endif  // QPRUNER_BASE_ENVIRONMENT_SECRET_H_
