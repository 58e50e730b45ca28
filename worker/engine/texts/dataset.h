// A text file as documents, dealt into four disjoint shares (TextDataset in qpruner/v1/spec.proto).
#ifndef QPRUNER_WORKER_ENGINE_TEXTS_DATASET_H_
#define QPRUNER_WORKER_ENGINE_TEXTS_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/texts/token_batch.h"
#include "worker/engine/tokenizer/tokenizer.h"

namespace qpruner::engine {

// By position: calibration has the first 10 %, fine-tuning the next 55 %, selection the next 15 %,
// test the last 20 % of the documents.
enum class Share { kCalibration, kFineTune, kSelection, kTest };

// First document of a share and one past its last, of `count` documents.
std::pair<int64_t, int64_t> ShareRange(Share share, int64_t count);

// "calibration", "fine-tuning", "selection", "test".
const char* ShareName(Share share);

// Where a text comes from and how it is divided.
struct TextSource {
  std::string path;
  // Empty: the file is one text; windows of `window_length` tokens count as documents. They are cut
  // from the ids of the whole file, with no token added, and a shorter rest is dropped.
  std::string document_separator = "<|endoftext|>";
  int64_t window_length = 512;
};

// Documents between `separator`, stripped of white space, the empty ones dropped. Views into
// `text`. An empty separator gives one document.
std::vector<absl::string_view> SplitDocuments(absl::string_view text, absl::string_view separator);

// An open text. Tokenizes a share only when it is asked for, and only as much as is asked for. Not
// thread-safe.
class Dataset {
 public:
  // Maps and divides the file. INVALID_ARGUMENT: not UTF-8 (with the byte), empty, larger than 4
  // GiB, or too few documents to give every share one. NOT_FOUND. `tokenizer` must outlive the
  // dataset.
  static absl::StatusOr<std::unique_ptr<Dataset>> Open(const TextSource& source,
                                                       const Tokenizer& tokenizer);
  virtual ~Dataset() = default;

  // Number of documents of a share.
  virtual int64_t document_count(Share share) const = 0;

  // Documents of a share in order, each bos + text cut to `sequence_length` tokens, until together
  // they predict `max_predicted_tokens` (a sequence of n tokens predicts n - 1; the last one is cut
  // to fit). 0: no bound. Documents that predict nothing are passed over. INVALID_ARGUMENT if fewer
  // than `min_predicted_tokens` come together: says how many there are.
  virtual absl::StatusOr<std::vector<TokenIds>> Documents(Share share, int64_t sequence_length,
                                                          int64_t max_predicted_tokens,
                                                          int64_t min_predicted_tokens = 1) = 0;

  // The same as windows to evaluate on. With `stride` = `sequence_length` these are Documents, each
  // one window; with less, RollingWindows of whole documents (of a text without a separator: of all
  // that is in the share).
  virtual absl::StatusOr<std::vector<Window>> Windows(Share share, int64_t sequence_length,
                                                      int64_t stride, int64_t max_predicted_tokens,
                                                      int64_t min_predicted_tokens = 1) = 0;

  // `count` different samples of exactly `sequence_length` tokens, drawn with `seed`: disjoint
  // pieces of the share's documents, each behind a bos. The same on every machine. INVALID_ARGUMENT
  // if the share holds fewer: says how many there are.
  virtual absl::StatusOr<std::vector<TokenIds>> Samples(Share share, int64_t count,
                                                        int64_t sequence_length, int64_t seed) = 0;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_TEXTS_DATASET_H_
