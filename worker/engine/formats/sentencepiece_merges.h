// Merges of a SentencePiece BPE model, which stores only its pieces and their scores.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_SENTENCEPIECE_MERGES_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_SENTENCEPIECE_MERGES_H_

#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace qpruner::engine {

struct ScoredPiece {
  absl::string_view text;  // UTF-8.
  float score = 0;
  // Only such pieces are made by merging; the others (control tokens, bytes) have a place, but no
  // part.
  bool mergeable = true;
};

// Every way to put a piece together from two others, the first to be applied first: by falling
// score, then by falling length of the left and right part in characters, then by position. The
// rule of transformers' generate_merges.
std::vector<std::pair<absl::string_view, absl::string_view>> MergesOfPieces(
    const std::vector<ScoredPiece>& pieces);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_SENTENCEPIECE_MERGES_H_
