#include "worker/engine/finetune/training_text.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

namespace qpruner::engine {
namespace {

// Fisher-Yates by hand: std::shuffle differs between libraries.
std::vector<int64_t> Permutation(int64_t count, std::mt19937_64 generator) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count; i > 1; --i) {
    std::swap(order[i - 1], order[generator() % static_cast<uint64_t>(i)]);
  }
  return order;
}

std::mt19937_64 GeneratorOf(uint64_t seed, uint64_t stream) {
  std::seed_seq sequence{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                         static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  return std::mt19937_64(sequence);
}

}  // namespace

std::vector<TrainingSequence> PackDocuments(const std::vector<TrainingSequence>& documents,
                                            int64_t length, uint64_t seed) {
  // Stream ~0 is never an epoch's.
  const std::vector<int64_t> order =
      Permutation(static_cast<int64_t>(documents.size()), GeneratorOf(seed, ~uint64_t{0}));
  std::vector<TrainingSequence> sequences;
  TokenIds current;
  for (int64_t document : order) {
    for (int32_t token : documents[static_cast<size_t>(document)].ids) {
      current.push_back(token);
      if (static_cast<int64_t>(current.size()) == length) {
        sequences.push_back({.ids = std::move(current)});
        current.clear();
      }
    }
  }
  if (current.size() >= 2) sequences.push_back({.ids = std::move(current)});
  return sequences;
}

std::vector<int64_t> SequencesOfStep(int64_t sequence_count, int64_t batch_size, uint64_t seed,
                                     int64_t step) {
  std::vector<int64_t> chosen;
  int64_t epoch = -1;
  std::vector<int64_t> order;
  for (int64_t position = step * batch_size; position < (step + 1) * batch_size; ++position) {
    if (position / sequence_count != epoch) {
      epoch = position / sequence_count;
      order = Permutation(sequence_count, GeneratorOf(seed, static_cast<uint64_t>(epoch)));
    }
    chosen.push_back(order[static_cast<size_t>(position % sequence_count)]);
  }
  return chosen;
}

std::vector<TrainingBatch> MakeTrainingBatches(const std::vector<TrainingSequence>& sequences,
                                               const std::vector<int64_t>& chosen, int64_t size) {
  std::vector<TrainingBatch> batches;
  const auto count = static_cast<int64_t>(chosen.size());
  for (int64_t first = 0; first < count; first += size) {
    const int64_t rows = std::min(size, count - first);
    size_t longest = 0;
    for (int64_t row = 0; row < rows; ++row) {
      longest = std::max(longest, sequences[static_cast<size_t>(chosen[first + row])].ids.size());
    }
    TrainingBatch batch;
    batch.first_sequence = first;
    batch.ids = at::zeros({rows, static_cast<int64_t>(longest)}, at::kLong);
    batch.targets = at::full_like(batch.ids, kNoTarget);
    for (int64_t row = 0; row < rows; ++row) {
      const TrainingSequence& sequence = sequences[static_cast<size_t>(chosen[first + row])];
      auto* ids = batch.ids[row].data_ptr<int64_t>();
      auto* targets = batch.targets[row].data_ptr<int64_t>();
      std::copy(sequence.ids.begin(), sequence.ids.end(), ids);
      const auto length = static_cast<int64_t>(sequence.ids.size());
      for (int64_t i = std::max<int64_t>(1, sequence.masked); i < length; ++i) {
        targets[i - 1] = ids[i];
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace qpruner::engine
