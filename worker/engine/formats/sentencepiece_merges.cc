#include "worker/engine/formats/sentencepiece_merges.h"

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <unordered_map>

#include "absl/hash/hash.h"

namespace qpruner::engine {
namespace {

bool BeginsCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

struct Merge {
  float score;
  size_t left_length, right_length;  // Characters.
  size_t left, right;                // Pieces.
};

}  // namespace

std::vector<std::pair<absl::string_view, absl::string_view>> MergesOfPieces(
    const std::vector<ScoredPiece>& pieces) {
  std::unordered_map<absl::string_view, size_t, absl::Hash<absl::string_view>> index;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].mergeable) index.emplace(pieces[i].text, i);
  }
  std::vector<Merge> merges;
  for (const ScoredPiece& piece : pieces) {
    if (!piece.mergeable) continue;
    const auto characters =
        static_cast<size_t>(std::count_if(piece.text.begin(), piece.text.end(), BeginsCharacter));
    const size_t first = merges.size();
    size_t length = 0;
    for (size_t at = 1; at < piece.text.size(); ++at) {
      if (!BeginsCharacter(piece.text[at])) continue;
      ++length;
      const auto left = index.find(piece.text.substr(0, at));
      const auto right = index.find(piece.text.substr(at));
      if (left == index.end() || right == index.end()) continue;
      merges.push_back({piece.score, length, characters - length, left->second, right->second});
    }
    std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end(),
              [](const Merge& a, const Merge& b) {
                return std::tie(a.left, a.right) < std::tie(b.left, b.right);
              });
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::tie(a.score, a.left_length, a.right_length) >
           std::tie(b.score, b.left_length, b.right_length);
  });
  std::vector<std::pair<absl::string_view, absl::string_view>> result;
  result.reserve(merges.size());
  for (const Merge& merge : merges) {
    result.emplace_back(pieces[merge.left].text, pieces[merge.right].text);
  }
  return result;
}

}  // namespace qpruner::engine
