// Token ids of texts, for comparison with other software (tests/compat/gguf_tokenizer_check.py).
//
// usage: qpruner_tokenize MODEL < TEXTS > IDS
// MODEL is a model folder or a .gguf file. One JSON string a line in, one JSON array of ids a line
// out, without special tokens around the text.
#include <cstdint>
#include <iostream>
#include <limits>
#include <string>

#include "nlohmann/json.hpp"
#include "worker/engine/tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: qpruner_tokenize MODEL < TEXTS > IDS\n";
    return 2;
  }
  auto tokenizer = qpruner::engine::Tokenizer::Open(argv[1], std::numeric_limits<int32_t>::max());
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const auto text = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!text.is_string()) {
      std::cerr << "not a JSON string: " << line << "\n";
      return 1;
    }
    auto ids = (*tokenizer)->Encode(text.get_ref<const std::string&>());
    if (!ids.ok()) {
      std::cerr << ids.status() << "\n";
      return 1;
    }
    std::cout << nlohmann::json(*ids).dump() << "\n";
  }
  return 0;
}
