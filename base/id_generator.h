// Unguessable identifiers as an injected dependency.
#ifndef QPRUNER_BASE_ID_GENERATOR_H_
#define QPRUNER_BASE_ID_GENERATOR_H_

#include <string>

namespace qpruner {

// Thread-safe.
class IdGenerator {
 public:
  virtual ~IdGenerator() = default;
  // `bytes` random bytes as lower-case hexadecimal digits, two each.
  virtual std::string Hex(int bytes) = 0;
};

// Draws from the kernel. Lives for ever.
IdGenerator& SystemIdGenerator();

}  // namespace qpruner

#endif  // QPRUNER_BASE_ID_GENERATOR_H_
