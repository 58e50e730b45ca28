#include "worker/engine/tasks/reference_file.h"

#include <ATen/ATen.h>

#include <cstring>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/formats/safetensors_writer.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/model/host_store.h"

namespace qpruner::engine {
namespace {

constexpr char kFormatName[] = "qpruner-reference-4";
constexpr char kLongestSequence[] = "longest_sequence";

std::string Bytes(const std::vector<int32_t>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int32_t));
}

void AddIntegers(const std::string& name, const std::vector<int32_t>& values,
                 std::vector<TensorToWrite>& tensors) {
  tensors.push_back(
      {name, DType::kI32, {static_cast<int64_t>(values.size())}, [bytes = Bytes(values)] {
         return bytes;
       }});
}

void AddSequences(const std::string& prefix, const std::vector<TokenIds>& sequences,
                  std::vector<TensorToWrite>& tensors) {
  TokenIds ids, lengths;
  for (const TokenIds& sequence : sequences) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    lengths.push_back(static_cast<int32_t>(sequence.size()));
  }
  AddIntegers(prefix + ".ids", ids, tensors);
  AddIntegers(prefix + ".lengths", lengths, tensors);
}

// Start of each window within the tokens end to end, and at the end their number.
std::vector<int64_t> Starts(const std::vector<Window>& windows) {
  std::vector<int64_t> starts = {0};
  for (const Window& window : windows) {
    starts.push_back(starts.back() + static_cast<int64_t>(window.ids.size()));
  }
  return starts;
}

// From the batches' padded layout to tokens end to end: a view of each sequence, in their order.
std::vector<at::Tensor> Unpad(const ReferenceShare& share) {
  std::vector<at::Tensor> sequences(share.windows.size());
  for (size_t i = 0; i < share.batches.size(); ++i) {
    const TokenBatch& batch = share.batches[i];
    for (size_t row = 0; row < batch.rows.size(); ++row) {
      const auto sequence = static_cast<size_t>(batch.rows[row]);
      const auto length = static_cast<int64_t>(share.windows[sequence].ids.size());
      sequences[sequence] =
          share.hidden[i].select(0, static_cast<int64_t>(row)).narrow(0, 0, length).contiguous();
    }
  }
  return sequences;
}

// The inverse.
std::vector<at::Tensor> Pad(const std::vector<Window>& windows,
                            const std::vector<TokenBatch>& batches, const at::Tensor& all) {
  const std::vector<int64_t> starts = Starts(windows);
  HostStore waiting;
  std::vector<at::Tensor> hidden;
  for (const TokenBatch& batch : batches) {
    at::Tensor padded =
        at::zeros({batch.ids.size(0), batch.ids.size(1), all.size(1)}, all.scalar_type());
    for (size_t row = 0; row < batch.rows.size(); ++row) {
      const size_t sequence = static_cast<size_t>(batch.rows[row]);
      const int64_t length = starts[sequence + 1] - starts[sequence];
      padded.select(0, static_cast<int64_t>(row))
          .narrow(0, 0, length)
          .copy_(all.narrow(0, starts[sequence], length));
    }
    hidden.push_back(waiting.Keep(padded));
  }
  return hidden;
}

void AddShare(const std::string& prefix, const ReferenceShare& share,
              std::vector<TensorToWrite>& tensors) {
  std::vector<TokenIds> sequences;
  std::vector<int32_t> context;
  for (const Window& window : share.windows) {
    sequences.push_back(window.ids);
    context.push_back(static_cast<int32_t>(window.context));
  }
  AddSequences(prefix, sequences, tensors);
  AddIntegers(prefix + ".context", context, tensors);
  tensors.push_back({prefix + ".hidden",
                     DType::kF32,
                     {Starts(share.windows).back(), share.hidden.front().size(2)},
                     [sequences = Unpad(share), next = size_t{0}]() mutable {
                       return BytesOf(sequences[next++]);
                     },
                     static_cast<int64_t>(share.windows.size())});
}

absl::StatusOr<const TensorView*> Find(const SafetensorsReader& reader, const std::string& name,
                                       DType dtype, size_t rank) {
  const auto found = reader.tensors().find(name);
  if (found == reader.tensors().end() || found->second.dtype != dtype ||
      found->second.shape.size() != rank) {
    return absl::InvalidArgumentError(absl::StrCat("Not a reference file: no ", DTypeName(dtype),
                                                   " tensor ", name, " of rank ", rank));
  }
  return &found->second;
}

absl::StatusOr<std::vector<TokenIds>> ReadSequences(const SafetensorsReader& reader,
                                                    const std::string& prefix) {
  ASSIGN_OR_RETURN(const TensorView* ids, Find(reader, prefix + ".ids", DType::kI32, 1));
  ASSIGN_OR_RETURN(const TensorView* lengths, Find(reader, prefix + ".lengths", DType::kI32, 1));
  std::vector<int32_t> sizes(static_cast<size_t>(lengths->element_count()));
  std::memcpy(sizes.data(), lengths->bytes.data(), lengths->bytes.size());
  std::vector<TokenIds> sequences;
  int64_t at = 0;
  for (const int32_t size : sizes) {
    if (size < 0 || at + size > ids->element_count()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Not a reference file: lengths of ", prefix, " exceed its ids"));
    }
    TokenIds sequence(static_cast<size_t>(size));
    std::memcpy(sequence.data(), ids->bytes.data() + at * int64_t{sizeof(int32_t)},
                sequence.size() * sizeof(int32_t));
    sequences.push_back(std::move(sequence));
    at += size;
  }
  if (at != ids->element_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a reference file: lengths of ", prefix, " do not reach its ids' end"));
  }
  return sequences;
}

// A count of the tokens of each sequence.
absl::StatusOr<std::vector<int32_t>> ReadCounts(const SafetensorsReader& reader,
                                                const std::string& name,
                                                const std::vector<TokenIds>& sequences) {
  ASSIGN_OR_RETURN(const TensorView* view, Find(reader, name, DType::kI32, 1));
  if (view->element_count() != static_cast<int64_t>(sequences.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a reference file: ", name, " does not fit its lengths"));
  }
  std::vector<int32_t> counts(sequences.size());
  std::memcpy(counts.data(), view->bytes.data(), view->bytes.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] < 0 || static_cast<size_t>(counts[i]) > sequences[i].size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Not a reference file: ", name, " exceeds its sequences"));
    }
  }
  return counts;
}

absl::StatusOr<ReferenceShare> ReadShare(const SafetensorsReader& reader, const std::string& prefix,
                                         int64_t batch_tokens) {
  ReferenceShare share;
  ASSIGN_OR_RETURN(std::vector<TokenIds> sequences, ReadSequences(reader, prefix));
  ASSIGN_OR_RETURN(const std::vector<int32_t> context,
                   ReadCounts(reader, prefix + ".context", sequences));
  for (size_t i = 0; i < sequences.size(); ++i) {
    share.windows.push_back({std::move(sequences[i]), context[i]});
  }
  share.batches = BatchWindows(share.windows, batch_tokens);
  ASSIGN_OR_RETURN(const TensorView* hidden, Find(reader, prefix + ".hidden", DType::kF32, 2));
  if (hidden->shape[0] != Starts(share.windows).back()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a reference file: ", prefix, ".hidden does not fit its ids"));
  }
  // In place in the mapped file, which `reader` keeps until the padded copies are made.
  share.hidden = Pad(share.windows, share.batches, TensorFromView(*hidden, nullptr));
  return share;
}

absl::StatusOr<std::shared_ptr<const SafetensorsReader>> OpenReference(const std::string& path) {
  ASSIGN_OR_RETURN(std::shared_ptr<const SafetensorsReader> reader, SafetensorsReader::Open(path));
  const auto format = reader->metadata().find("format");
  if (format == reader->metadata().end() || format->second != kFormatName) {
    return absl::InvalidArgumentError(
        absl::StrCat("Not a reference file: metadata \"format\" is not ", kFormatName));
  }
  return reader;
}

absl::StatusOr<int64_t> LongestSequenceOf(const SafetensorsReader& reader) {
  const auto found = reader.metadata().find(kLongestSequence);
  int64_t longest = 0;
  if (found == reader.metadata().end() || !absl::SimpleAtoi(found->second, &longest) ||
      longest < 0) {
    return absl::InvalidArgumentError(absl::StrCat("Not a reference file: metadata \"",
                                                   kLongestSequence, "\" is no number of tokens"));
  }
  return longest;
}

}  // namespace

absl::Status WriteReference(const std::string& path, const Reference& reference) {
  std::vector<TensorToWrite> tensors;
  AddShare("selection", reference.selection, tensors);
  AddShare("test", reference.test, tensors);
  std::vector<TokenIds> ids;
  TokenIds masked;
  for (const TrainingSequence& sequence : reference.fine_tune) {
    ids.push_back(sequence.ids);
    masked.push_back(static_cast<int32_t>(sequence.masked));
  }
  AddSequences("fine_tune", ids, tensors);
  AddIntegers("fine_tune.masked", masked, tensors);
  return WriteSafetensors(
      path, std::move(tensors),
      {{"format", kFormatName}, {kLongestSequence, absl::StrCat(reference.longest_sequence)}});
}

absl::StatusOr<int64_t> ReadLongestSequence(const std::string& path) {
  ASSIGN_OR_RETURN(const auto reader, OpenReference(path));
  return LongestSequenceOf(*reader);
}

absl::StatusOr<Reference> ReadReference(const std::string& path, int64_t batch_tokens) {
  ASSIGN_OR_RETURN(const auto reader, OpenReference(path));
  Reference reference;
  ASSIGN_OR_RETURN(reference.longest_sequence, LongestSequenceOf(*reader));
  ASSIGN_OR_RETURN(reference.selection, ReadShare(*reader, "selection", batch_tokens));
  ASSIGN_OR_RETURN(reference.test, ReadShare(*reader, "test", batch_tokens));
  ASSIGN_OR_RETURN(std::vector<TokenIds> ids, ReadSequences(*reader, "fine_tune"));
  ASSIGN_OR_RETURN(const std::vector<int32_t> masked, ReadCounts(*reader, "fine_tune.masked", ids));
  for (size_t i = 0; i < ids.size(); ++i) {
    reference.fine_tune.push_back({.ids = std::move(ids[i]), .masked = masked[i]});
  }
  return reference;
}

}  // namespace qpruner::engine
