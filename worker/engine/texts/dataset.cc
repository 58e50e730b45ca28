#include "worker/engine/texts/dataset.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/utf8.h"
#include "worker/engine/formats/mapped_file.h"
#include "worker/engine/split_mix.h"

namespace qpruner::engine {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{4} << 30;
// Where each share ends, in percent of the documents.
constexpr std::array<int64_t, 4> kShareEnds = {10, 65, 80, 100};
constexpr std::array<Share, 4> kShares = {Share::kCalibration, Share::kFineTune, Share::kSelection,
                                          Share::kTest};

// SplitMix64 (Steele, Lea, Flood 2014): the standard library's distributions differ between
// implementations, and a seed has to mean the same everywhere.
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    const uint64_t value = SplitMix(state_);
    state_ += kSplitMixStep;
    return value;
  }
  // 0 .. bound - 1, without bias.
  uint64_t Below(uint64_t bound) {
    const uint64_t limit = UINT64_MAX - UINT64_MAX % bound;
    uint64_t value = Next();
    while (value >= limit) value = Next();
    return value % bound;
  }

 private:
  uint64_t state_;
};

class FileDataset : public Dataset {
 public:
  FileDataset(TextSource source, const Tokenizer& tokenizer, std::unique_ptr<const MappedFile> file)
      : source_(std::move(source)), tokenizer_(tokenizer), file_(std::move(file)) {}

  absl::Status Initialize() {
    const absl::string_view text = file_->bytes();
    if (static_cast<int64_t>(text.size()) > kMaxFileBytes) {
      return absl::InvalidArgumentError(absl::StrCat("Text too large: ", source_.path, " has ",
                                                     text.size(), " bytes, at most ", kMaxFileBytes,
                                                     " are read"));
    }
    if (text.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("Text is empty: ", source_.path));
    }
    if (const int64_t position = FindInvalidUtf8(text); position >= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("Text is not UTF-8: ", source_.path, ", at byte ", position));
    }
    if (windowed()) {
      if (source_.window_length < 2) {
        return absl::InvalidArgumentError(
            absl::StrCat("window_length must be at least 2: ", source_.window_length));
      }
      ASSIGN_OR_RETURN(ids_, tokenizer_.Encode(text));
      document_count_ = static_cast<int64_t>(ids_.size()) / source_.window_length;
    } else {
      documents_ = SplitDocuments(text, source_.document_separator);
      document_count_ = static_cast<int64_t>(documents_.size());
    }
    for (Share share : kShares) {
      if (document_count(share) > 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          "Text too short: ", source_.path, " has ", document_count_,
          windowed()
              ? absl::StrCat(" windows of ", source_.window_length, " tokens (", ids_.size(),
                             " tokens)")
              : absl::StrCat(" documents (separator ", Quoted(source_.document_separator), ")"),
          ", which leaves none for ", ShareName(share), "; ", kMinDocuments, " are needed"));
    }
    return absl::OkStatus();
  }

  int64_t document_count(Share share) const override { return End(share) - Begin(share); }

  absl::StatusOr<std::vector<TokenIds>> Documents(Share share, int64_t sequence_length,
                                                  int64_t max_predicted_tokens,
                                                  int64_t min_predicted_tokens) override {
    if (sequence_length < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence_length must be at least 2: ", sequence_length));
    }
    std::vector<TokenIds> result;
    int64_t predicted = 0;
    for (int64_t i = Begin(share); i < End(share); ++i) {
      ASSIGN_OR_RETURN(TokenIds ids, Document(i));
      int64_t length = std::min<int64_t>(sequence_length, static_cast<int64_t>(ids.size()));
      if (max_predicted_tokens > 0) {
        length = std::min(length, max_predicted_tokens - predicted + 1);
      }
      if (length < 2) continue;
      ids.resize(static_cast<size_t>(length));
      ids.shrink_to_fit();
      predicted += length - 1;
      result.push_back(std::move(ids));
      if (max_predicted_tokens > 0 && predicted >= max_predicted_tokens) break;
    }
    RETURN_IF_ERROR(CheckPredicted(share, predicted, sequence_length, min_predicted_tokens));
    return result;
  }

  absl::StatusOr<std::vector<Window>> Windows(Share share, int64_t sequence_length, int64_t stride,
                                              int64_t max_predicted_tokens,
                                              int64_t min_predicted_tokens) override {
    std::vector<Window> result;
    if (stride == sequence_length) {
      ASSIGN_OR_RETURN(
          std::vector<TokenIds> documents,
          Documents(share, sequence_length, max_predicted_tokens, min_predicted_tokens));
      for (TokenIds& ids : documents) result.push_back({.ids = std::move(ids)});
      return result;
    }
    if (stride < 1 || stride > sequence_length) {
      return absl::InvalidArgumentError(
          absl::StrCat("stride must be from 1 to ", sequence_length, ": ", stride));
    }
    int64_t predicted = 0;
    const auto enough = [&] {
      return max_predicted_tokens > 0 && predicted >= max_predicted_tokens;
    };
    const auto add = [&](const TokenIds& text) {
      for (Window& window : RollingWindows(text, sequence_length, stride)) {
        if (enough()) return;
        auto size = static_cast<int64_t>(window.ids.size());
        if (max_predicted_tokens > 0) {
          size = std::min(size, window.context + max_predicted_tokens - predicted);
        }
        window.ids.resize(static_cast<size_t>(size));
        predicted += size - window.context;
        result.push_back(std::move(window));
      }
    };
    if (windowed()) {
      add({ids_.begin() + Begin(share) * source_.window_length,
           ids_.begin() + End(share) * source_.window_length});
    } else {
      for (int64_t i = Begin(share); i < End(share) && !enough(); ++i) {
        ASSIGN_OR_RETURN(const TokenIds ids, Document(i));
        add(ids);
      }
    }
    RETURN_IF_ERROR(CheckPredicted(share, predicted, sequence_length, min_predicted_tokens));
    return result;
  }

  absl::StatusOr<std::vector<TokenIds>> Samples(Share share, int64_t count, int64_t sequence_length,
                                                int64_t seed) override {
    const auto bos = windowed() ? std::nullopt : tokenizer_.bos();
    const int64_t prefix = bos ? 1 : 0;
    const int64_t piece = sequence_length - prefix;
    if (piece < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence_length must be at least ", prefix + 1, ": ", sequence_length));
    }
    std::vector<TokenIds> samples;
    for (int64_t i = Begin(share); i < End(share); ++i) {
      ASSIGN_OR_RETURN(const TokenIds ids, Document(i));
      const auto size = static_cast<int64_t>(ids.size());
      for (int64_t begin = prefix; begin + piece <= size; begin += piece) {
        TokenIds sample;
        sample.reserve(static_cast<size_t>(sequence_length));
        if (bos) sample.push_back(*bos);
        sample.insert(sample.end(), ids.begin() + begin, ids.begin() + begin + piece);
        samples.push_back(std::move(sample));
      }
    }
    const auto available = static_cast<int64_t>(samples.size());
    if (available < count) {
      return TooShort(share, absl::StrCat(available, " samples of ", sequence_length, " tokens"),
                      count);
    }
    // The first `count` steps of a Fisher-Yates shuffle.
    SplitMix64 random(static_cast<uint64_t>(seed));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t other =
          i + static_cast<int64_t>(random.Below(static_cast<uint64_t>(available - i)));
      std::swap(samples[static_cast<size_t>(i)], samples[static_cast<size_t>(other)]);
    }
    samples.resize(static_cast<size_t>(count));
    return samples;
  }

 private:
  // With fewer, rounding down leaves calibration without a document.
  static constexpr int64_t kMinDocuments = 10;

  static std::string Quoted(absl::string_view text) { return absl::StrCat("\"", text, "\""); }

  bool windowed() const { return source_.document_separator.empty(); }
  int64_t End(Share share) const { return ShareRange(share, document_count_).second; }
  int64_t Begin(Share share) const { return ShareRange(share, document_count_).first; }

  absl::StatusOr<TokenIds> Document(int64_t index) const {
    if (!windowed()) return tokenizer_.EncodeDocument(documents_[static_cast<size_t>(index)]);
    const auto begin = ids_.begin() + index * source_.window_length;
    return TokenIds(begin, begin + source_.window_length);
  }

  absl::Status CheckPredicted(Share share, int64_t predicted, int64_t sequence_length,
                              int64_t needed) const {
    if (predicted >= needed) return absl::OkStatus();
    return TooShort(
        share,
        absl::StrCat(predicted, " predicted tokens in sequences of at most ", sequence_length),
        needed);
  }

  absl::Status TooShort(Share share, const std::string& there, int64_t needed) const {
    return absl::InvalidArgumentError(
        absl::StrCat("Text too short: ", source_.path, " gives ", there, " for ", ShareName(share),
                     " (", document_count(share), " of its ", document_count_, " documents); ",
                     needed, " are needed"));
  }

  const TextSource source_;
  const Tokenizer& tokenizer_;
  const std::unique_ptr<const MappedFile> file_;
  std::vector<absl::string_view> documents_;  // Views into file_; empty if windowed.
  TokenIds ids_;                              // Of the whole file; empty unless windowed.
  int64_t document_count_ = 0;
};

}  // namespace

std::pair<int64_t, int64_t> ShareRange(Share share, int64_t count) {
  const auto index = static_cast<size_t>(share);
  const int64_t begin = index == 0 ? 0 : kShareEnds[index - 1];
  return {count * begin / 100, count * kShareEnds[index] / 100};
}

const char* ShareName(Share share) {
  switch (share) {
    case Share::kCalibration:
      return "calibration";
    case Share::kFineTune:
      return "fine-tuning";
    case Share::kSelection:
      return "selection";
    case Share::kTest:
      return "test";
  }
  return "";
}

std::vector<absl::string_view> SplitDocuments(absl::string_view text, absl::string_view separator) {
  std::vector<absl::string_view> documents;
  while (true) {
    const size_t end = separator.empty() ? absl::string_view::npos : text.find(separator);
    const absl::string_view document = absl::StripAsciiWhitespace(text.substr(0, end));
    if (!document.empty()) documents.push_back(document);
    if (end == absl::string_view::npos) return documents;
    text.remove_prefix(end + separator.size());
  }
}

absl::StatusOr<std::unique_ptr<Dataset>> Dataset::Open(const TextSource& source,
                                                       const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(auto file, MappedFile::Open(source.path));
  auto dataset = std::make_unique<FileDataset>(source, tokenizer, std::move(file));
  RETURN_IF_ERROR(dataset->Initialize());
  return dataset;
}

}  // namespace qpruner::engine
