// Random numbers that depend on nothing but a seed and the number of the proposal they are for, so
// that a restarted server continues a search as if it had never stopped. Written out because the
// standard library's distributions differ between implementations.
#ifndef QPRUNER_SEARCH_RANDOM_STREAM_H_
#define QPRUNER_SEARCH_RANDOM_STREAM_H_

#include <cstdint>

namespace qpruner::search {

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Not thread-safe; make one where it is needed.
class RandomStream {
 public:
  RandomStream(int64_t seed, int index)
      : state_(Mix(Mix(static_cast<uint64_t>(seed)) + static_cast<uint64_t>(index))) {}

  uint64_t Next() { return Mix(state_ += 0x9e3779b97f4a7c15u); }

  // Uniform in [0, 1), with 53 random bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

  // Uniform in [0, bound), 0 < bound < 2^31; the bias of the multiplication is below 2^-32.
  int Below(int bound) {
    return static_cast<int>(((Next() >> 32) * static_cast<uint64_t>(bound)) >> 32);
  }

 private:
  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_RANDOM_STREAM_H_
