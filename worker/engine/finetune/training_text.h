// Which tokens each training step sees.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_TEXT_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_TEXT_H_

#include <cstdint>
#include <vector>

#include "worker/engine/finetune/training_objective.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// One row of a batch. The first `masked` tokens are read but not predicted (a prompt).
struct TrainingSequence {
  TokenIds ids;
  int64_t masked = 0;

  bool operator==(const TrainingSequence&) const = default;
};

// Sequences of `length` tokens cut from the documents (nothing masked) joined in an order drawn
// from `seed`; a last one shorter than `length` is kept if it has at least 2 tokens. So almost no
// position is padding.
std::vector<TrainingSequence> PackDocuments(const std::vector<TrainingSequence>& documents,
                                            int64_t length, uint64_t seed);

// Indices of the sequences of update `step`: each epoch is a permutation drawn from (seed, epoch),
// so that the order follows from the step alone.
std::vector<int64_t> SequencesOfStep(int64_t sequence_count, int64_t batch_size, uint64_t seed,
                                     int64_t step);

// The chosen sequences in order, at most `size` a batch, padded on the right.
std::vector<TrainingBatch> MakeTrainingBatches(const std::vector<TrainingSequence>& sequences,
                                               const std::vector<int64_t>& chosen, int64_t size);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_TRAINING_TEXT_H_
