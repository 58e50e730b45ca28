// Runs a fuzz target without a fuzzer: over each file of a corpus folder, and over copies of it
// that are spoilt in repeatable ways. What a compiler without libFuzzer can do, on every test run.
//
// usage: TARGET_replay FOLDER [COPIES_PER_FILE]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void Run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
}

// One to four changes: a byte, a piece deleted or doubled, a digit, the end cut off.
std::string Spoilt(std::string input, std::mt19937& random) {
  const auto below = [&](size_t bound) { return bound == 0 ? 0 : random() % bound; };
  for (size_t changes = 1 + below(4); changes > 0 && !input.empty(); --changes) {
    const size_t at = below(input.size());
    const size_t length = 1 + below(std::min<size_t>(16, input.size() - at));
    switch (below(5)) {
      case 0:
        input[at] = static_cast<char>(random());
        break;
      case 1:
        input.erase(at, length);
        break;
      case 2:
        input.insert(at, input.substr(at, length));
        break;
      case 3: {
        const size_t digit = input.find_first_of("0123456789", at);
        if (digit != std::string::npos) input[digit] = static_cast<char>('0' + below(10));
        break;
      }
      case 4:
        input.resize(at);
        break;
    }
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int copies = argc > 2 ? std::atoi(argv[2]) : 2000;
  // Other copies each time; a third argument repeats those of a run that failed.
  const unsigned seed =
      argc > 3 ? static_cast<unsigned>(std::strtoul(argv[3], nullptr, 10)) : std::random_device()();
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream stream(entry.path(), std::ios::binary);
    const std::string input(std::istreambuf_iterator<char>(stream), {});
    Run(input);
    std::mt19937 random(seed);
    for (int i = 0; i < copies; ++i) Run(Spoilt(input, random));
    ++files;
  }
  std::printf("%d files, %d spoilt copies each\n", files, copies);
  return files > 0 ? 0 : 1;
}
