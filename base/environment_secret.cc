#include "base/environment_secret.h"

#include <stdlib.h>
#include <string.h>

namespace qpruner {

std::string TakeFromEnvironment(const char* name) {
  char* const value = getenv(name);
  if (value == nullptr) return "";
  std::string taken = value;
  // The kernel shows the memory that the process began with, whatever unsetenv does.
  explicit_bzero(value, taken.size());
  unsetenv(name);
  return taken;
}

}  // namespace qpruner
