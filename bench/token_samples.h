// Token ids that a Python script hands to a program that measures, so that both see the same text.
#ifndef QPRUNER_BENCH_TOKEN_SAMPLES_H_
#define QPRUNER_BENCH_TOKEN_SAMPLES_H_

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// A sample a line, ids divided by spaces; none if the file cannot be read.
inline std::vector<TokenIds> ReadTokenSamples(const std::string& path) {
  std::vector<TokenIds> samples;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    TokenIds& ids = samples.emplace_back();
    for (int32_t id = 0; words >> id;) ids.push_back(id);
  }
  return samples;
}

}  // namespace qpruner::engine

#endif  // QPRUNER_BENCH_TOKEN_SAMPLES_H_
