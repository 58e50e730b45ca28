// What trials and finalizing need of the texts and of the original model: one safetensors file.
//
//   selection.ids, test.ids, fine_tune.ids              I32 [tokens]     sequences end to end
//   selection.lengths, test.lengths, fine_tune.lengths  I32 [sequences]
//   fine_tune.masked                                    I32 [sequences]  TrainingSequence::masked
//   selection.context, test.context                     I32 [sequences]  Window::context
//   selection.hidden, test.hidden                       F32 [tokens, hidden]
//
// hidden: the original's final hidden states after the final norm. The head is never pruned, so the
// original's logits are those states times the head of the prepared model. The metadata has
// longest_sequence.
//
// Hidden states may be more than memory holds: they are written a sequence at a time, and read into
// a HostStore.
#ifndef QPRUNER_WORKER_ENGINE_TASKS_REFERENCE_FILE_H_
#define QPRUNER_WORKER_ENGINE_TASKS_REFERENCE_FILE_H_

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/finetune/training_text.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// One share with the original's states over it.
struct ReferenceShare {
  std::vector<Window> windows;
  std::vector<TokenBatch> batches;  // BatchWindows(windows, ..)
  std::vector<at::Tensor> hidden;   // One [batch, length, hidden] for each of `batches`.
};

struct Reference {
  ReferenceShare selection;
  ReferenceShare test;
  // Documents to be packed, or sequences as they are (packing off, instruction data).
  std::vector<TrainingSequence> fine_tune;
  // Of what models are measured on, the questions of tasks included: what memory is planned for.
  int64_t longest_sequence = 0;
};

absl::Status WriteReference(const std::string& path, const Reference& reference);

// Of the file's Reference. INVALID_ARGUMENT: not such a file.
absl::StatusOr<int64_t> ReadLongestSequence(const std::string& path);
// With batches of at most `batch_tokens` tokens. INVALID_ARGUMENT: not such a file.
absl::StatusOr<Reference> ReadReference(const std::string& path, int64_t batch_tokens = 4096);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TASKS_REFERENCE_FILE_H_
