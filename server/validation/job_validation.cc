#include "server/validation/job_validation.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/utf8.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "proto/spec_defaults.h"
#include "proto/status_codec.h"
#include "server/validation/capabilities.h"
#include "server/validation/model_uri.h"

namespace qpruner::server {
namespace {

constexpr size_t kMaxDisplayNameBytes = 256;
constexpr int kMaxLabels = 32;
constexpr size_t kMaxLabelValueBytes = 63;
constexpr size_t kMaxRequestIdBytes = 64;
constexpr size_t kMaxUriBytes = 4096;
constexpr int kMaxEvaluationTasks = 32;
constexpr size_t kMaxQuerySuffixBytes = 256;
// Longer values are cut in messages.
constexpr size_t kMaxQuotedBytes = 100;
// A year.
constexpr int64_t kMaxLimitSeconds = 31'536'000;
constexpr int64_t kMaxDeviceMemoryBytes = int64_t{1} << 50;

std::string Quoted(absl::string_view value) {
  return absl::StrCat("\"", CutUtf8(value, kMaxQuotedBytes),
                      value.size() > kMaxQuotedBytes ? "...\"" : "\"");
}

// Collects violations; `prefix` names the message whose fields are checked.
class FieldChecker {
 public:
  void Fail(const std::string& field, const std::string& description) {
    violations_.push_back({field, description});
  }
  // Inclusive bounds.
  template <typename T>
  void Range(const std::string& field, T value, T low, T high) {
    if (value < low || value > high) {
      Fail(field, absl::StrCat("must be from ", low, " to ", high, ", is ", value));
    }
  }
  // Bounds with a notation of their own, such as "[0, 1)". NaN is never inside.
  void Interval(const std::string& field, double value, bool inside, const char* interval) {
    if (!inside || !std::isfinite(value)) {
      Fail(field, absl::StrCat("must be in ", interval, ", is ", value));
    }
  }
  // Proto3 enums are open: a newer client may send a number that has no name here.
  template <typename Enum>
  void Known(const std::string& field, Enum value, bool known) {
    if (!known) {
      Fail(field, absl::StrCat("is not a value this server knows: ", static_cast<int>(value)));
    }
  }
  absl::Status status() const {
    return violations_.empty() ? absl::OkStatus() : BadRequestError(violations_);
  }

 private:
  std::vector<FieldViolation> violations_;
};

// PostgreSQL stores no text with one.
bool HasZeroByte(absl::string_view text) { return absl::StrContains(text, '\0'); }

bool IsLabelKey(absl::string_view key) {
  return !key.empty() && key.size() <= 63 && std::all_of(key.begin(), key.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-';
  });
}

// True if `path` is `root` or lies below it, part by part.
bool IsBelow(const std::filesystem::path& path, const std::filesystem::path& root) {
  auto part = path.begin();
  for (const std::filesystem::path& root_part : root) {
    if (root_part.empty()) continue;  // A trailing slash.
    if (part == path.end() || *part != root_part) return false;
    ++part;
  }
  return true;
}

bool IsBelowAnyRoot(const std::string& path, const std::vector<std::string>& roots) {
  // Links are followed where this machine has the path, so that one cannot lead outside.
  std::error_code error;
  std::filesystem::path resolved = std::filesystem::weakly_canonical(path, error);
  if (error) resolved = path;
  return std::any_of(roots.begin(), roots.end(), [&](const std::string& root) {
    std::error_code root_error;
    std::filesystem::path resolved_root = std::filesystem::weakly_canonical(root, root_error);
    if (root_error) resolved_root = root;
    return IsBelow(path, root) && IsBelow(resolved, resolved_root);
  });
}

template <size_t N>
void CheckUri(FieldChecker& check, const std::string& field, absl::string_view uri,
              const std::array<const char*, N>& builtins, const JobValidationOptions& options,
              absl::string_view more_forms = "") {
  std::string forms = "file:///absolute/path";
  for (const char* name : builtins) absl::StrAppend(&forms, " or builtin://", name);
  absl::StrAppend(&forms, more_forms);
  if (uri.empty()) {
    check.Fail(field, absl::StrCat("is required: ", forms));
    return;
  }
  if (uri.size() > kMaxUriBytes) {
    check.Fail(field, absl::StrCat("must be at most ", kMaxUriBytes, " bytes, is ", uri.size()));
    return;
  }
  absl::string_view rest = uri;
  if (absl::ConsumePrefix(&rest, "builtin://")) {
    if (std::find(builtins.begin(), builtins.end(), rest) == builtins.end()) {
      check.Fail(field, absl::StrCat("names nothing that is shipped: ", Quoted(uri),
                                     "; it must be ", forms));
    }
    return;
  }
  if (!absl::ConsumePrefix(&rest, "file://")) {
    check.Fail(field, absl::StrCat("must be ", forms, ", is ", Quoted(uri)));
    return;
  }
  // The path is taken as it stands: no percent-decoding, no host.
  if (!absl::StartsWith(rest, "/")) {
    check.Fail(field, absl::StrCat("must hold an absolute path (file:///...), is ", Quoted(uri)));
    return;
  }
  if (std::any_of(rest.begin(), rest.end(), [](char c) { return absl::ascii_iscntrl(c); })) {
    check.Fail(field, "must not hold control characters");
    return;
  }
  for (absl::string_view part : absl::StrSplit(rest, '/')) {
    if (part == "." || part == "..") {
      check.Fail(field, absl::StrCat("must not hold \".\" or \"..\" parts, is ", Quoted(uri)));
      return;
    }
  }
  if (options.model_roots.empty()) {
    check.Fail(field, absl::StrCat("must not be file://, of which this server allows no folder "
                                   "(--model-root), is ",
                                   Quoted(uri)));
  } else if (!IsBelowAnyRoot(std::string(rest), options.model_roots)) {
    check.Fail(field,
               absl::StrCat("must lie below one of the folders this server allows (",
                            absl::StrJoin(options.model_roots, ", "), "), is ", Quoted(uri)));
  }
}

void CheckModelUri(FieldChecker& check, absl::string_view uri, const std::string& project,
                   const JobValidationOptions& options) {
  const std::string field = "job.spec.model.uri";
  if (uri.size() > kMaxUriBytes || !IsFetchedModelUri(uri)) {
    CheckUri(check, field, uri, kBuiltinModels, options,
             ", hf://organization/name@revision, s3://bucket/prefix or artifact://NAME");
  } else if (const std::string problem = FetchedModelUriProblem(uri, project); !problem.empty()) {
    check.Fail(field, problem);
  }
}

void CheckDataset(FieldChecker& check, const std::string& field, const v1::TextDataset& dataset,
                  const JobValidationOptions& options) {
  CheckUri(check, field + ".uri", dataset.uri(), kBuiltinTexts, options);
}

void CheckPruning(FieldChecker& check, const v1::Pruning& pruning) {
  const std::string at = "job.spec.pruning.";
  check.Known(at + "importance", pruning.importance(),
              v1::Pruning::Importance_IsValid(pruning.importance()));
  check.Known(at + "layout", pruning.layout(), v1::Pruning::Layout_IsValid(pruning.layout()));
  check.Known(at + "reduction", pruning.reduction(),
              v1::Pruning::Reduction_IsValid(pruning.reduction()));
  check.Interval(at + "ratio", pruning.ratio(), pruning.ratio() >= 0 && pruning.ratio() < 1,
                 "[0, 1)");
  check.Range(at + "alignment", pruning.alignment(), 1, 1024);
  check.Range(at + "steps", pruning.steps(), 1, 64);
  if (pruning.has_parameter_ratio()) {
    check.Interval(at + "parameter_ratio", pruning.parameter_ratio(),
                   pruning.parameter_ratio() > 0 && pruning.parameter_ratio() < 1, "(0, 1)");
    if (pruning.ratio() != 0) {
      check.Fail(at + "ratio", "must be left out with parameter_ratio, which chooses the ratios");
    }
    if (pruning.steps() != 1) check.Fail(at + "steps", "must be 1 with parameter_ratio");
    if (pruning.selection() != v1::Pruning::LOCAL) {
      check.Fail(at + "selection", "must be LOCAL with parameter_ratio");
    }
  }
  check.Known(at + "selection", pruning.selection(),
              v1::Pruning::Selection_IsValid(pruning.selection()));
  if (pruning.selection() != v1::Pruning::LOCAL && pruning.layout() != v1::Pruning::PER_LAYER) {
    check.Fail(at + "selection", "other than LOCAL needs layout PER_LAYER");
  }
  if (pruning.layout() == v1::Pruning::PER_LAYER) {
    if (pruning.first_block() < 0) {
      check.Fail(at + "first_block",
                 absl::StrCat("must not be negative, is ", pruning.first_block()));
    }
    if (pruning.has_last_block() && pruning.last_block() <= pruning.first_block()) {
      check.Fail(at + "last_block",
                 absl::StrCat("must be larger than first_block (", pruning.first_block(), "), is ",
                              pruning.last_block()));
    }
  } else {
    if (pruning.has_first_block()) check.Fail(at + "first_block", "needs layout PER_LAYER");
    if (pruning.has_last_block()) check.Fail(at + "last_block", "needs layout PER_LAYER");
  }
}

// Whether a width is stored as integers in groups.
bool IsIntegerGroup(const v1::Quantization& quantization, int bits) {
  switch (bits) {
    case 2:
    case 3:
      return quantization.low_bit() == v1::Quantization::INTEGER_GROUP;
    case 4:
      return quantization.four_bit() == v1::Quantization::INT4_GROUP;
    case 8:
      return quantization.eight_bit() == v1::Quantization::INT8_GROUP;
    default:
      return bits < 16;
  }
}

// Stored bits of a weight that a width cannot fall below, scales included.
double StoredBits(const v1::Quantization& quantization, int bits) {
  if (bits == 16) return bits;
  if (IsIntegerGroup(quantization, bits)) {
    // A bfloat16 scale, and a zero point as wide as a code.
    const int of_group = 16 + (quantization.symmetric() ? 0 : bits);
    return bits + static_cast<double>(of_group) / quantization.group_size();
  }
  if (bits == 8 && quantization.eight_bit() == v1::Quantization::INT8_ROW) return bits;
  // Blocks of 64 with a 32-bit scale, or an 8-bit one and 32 bits for 256 of those.
  if (bits == 4 && quantization.double_quantization()) return bits + (8 + 32.0 / 256) / 64;
  return bits + 32.0 / 64;
}

// Stored bits of a weight that no assignment of the candidates can fall below.
double SmallestAverageBits(const v1::CompressionSpec& spec) {
  double smallest = 16;
  for (const int bits : spec.search().candidate_bits()) {
    smallest = std::min(smallest, StoredBits(spec.quantization(), bits));
  }
  return smallest;
}

void CheckGptq(FieldChecker& check, const v1::CompressionSpec& spec) {
  const v1::Quantization& quantization = spec.quantization();
  const auto& candidates = spec.search().candidate_bits();
  check.Interval("job.spec.quantization.damping", quantization.damping(),
                 quantization.damping() > 0 && quantization.damping() <= 1, "(0, 1]");
  if (std::all_of(candidates.begin(), candidates.end(), [&](int bits) {
        return bits == 16 || (bits == 8 && quantization.eight_bit() == v1::Quantization::INT8_ROW);
      })) {
    check.Fail("job.spec.quantization.method",
               "GPTQ needs a candidate width that it rounds to: neither 16 nor INT8_ROW is");
  }
  if (spec.fine_tune().steps() > 0 && spec.fine_tune().init() == v1::FineTune::LOFTQ &&
      spec.fine_tune().loftq_iterations() > 1) {
    check.Fail("job.spec.fine_tune.loftq_iterations",
               absl::StrCat("must be 1 with quantization.method GPTQ, whose weights are quantized "
                            "once; is ",
                            spec.fine_tune().loftq_iterations()));
  }
}

void CheckQuantization(FieldChecker& check, const v1::CompressionSpec& spec) {
  const v1::Quantization& quantization = spec.quantization();
  const std::string at = "job.spec.quantization.";
  check.Known(at + "four_bit", quantization.four_bit(),
              v1::Quantization::FourBit_IsValid(quantization.four_bit()));
  check.Known(at + "eight_bit", quantization.eight_bit(),
              v1::Quantization::EightBit_IsValid(quantization.eight_bit()));
  check.Known(at + "low_bit", quantization.low_bit(),
              v1::Quantization::LowBit_IsValid(quantization.low_bit()));
  const int group = quantization.group_size();
  if (std::find(kGroupSizes.begin(), kGroupSizes.end(), group) == kGroupSizes.end()) {
    check.Fail(at + "group_size",
               absl::StrCat("must be one of ", absl::StrJoin(kGroupSizes, ", "), ", is ", group));
  }
  const auto& candidates = spec.search().candidate_bits();
  if (quantization.symmetric() && std::none_of(candidates.begin(), candidates.end(), [&](int bits) {
        return IsIntegerGroup(quantization, bits);
      })) {
    check.Fail(at + "symmetric", "needs a candidate width that is stored as integers in groups");
  }
  if (quantization.double_quantization() &&
      (quantization.four_bit() == v1::Quantization::INT4_GROUP ||
       std::find(candidates.begin(), candidates.end(), 4) == candidates.end())) {
    check.Fail(at + "double_quantization",
               "needs a candidate width of 4 bits with four_bit NF4 or FP4");
  }
  check.Known(at + "method", quantization.method(),
              v1::Quantization::Method_IsValid(quantization.method()));
  if (quantization.method() == v1::Quantization::GPTQ) {
    CheckGptq(check, spec);
  } else {
    if (quantization.has_damping()) check.Fail(at + "damping", "needs method GPTQ");
    if (quantization.has_activation_order()) {
      check.Fail(at + "activation_order", "needs method GPTQ");
    }
  }
}

void CheckSearch(FieldChecker& check, const v1::CompressionSpec& spec) {
  const v1::Search& search = spec.search();
  const std::string at = "job.spec.search.";
  std::set<int> seen;
  bool bits_are_good = true;
  for (int i = 0; i < search.candidate_bits_size(); ++i) {
    const int bits = search.candidate_bits(i);
    const std::string field = absl::StrCat(at, "candidate_bits[", i, "]");
    if (std::find(kCandidateBits.begin(), kCandidateBits.end(), bits) == kCandidateBits.end()) {
      check.Fail(field, absl::StrCat("must be one of ", absl::StrJoin(kCandidateBits, ", "),
                                     ", is ", bits));
      bits_are_good = false;
    } else if (!seen.insert(bits).second) {
      check.Fail(field, absl::StrCat("names ", bits, " twice"));
    }
  }
  check.Known(at + "granularity", search.granularity(),
              v1::Search::Granularity_IsValid(search.granularity()));
  check.Known(at + "algorithm", search.algorithm(),
              v1::Search::Algorithm_IsValid(search.algorithm()));
  check.Known(at + "quality_metric", search.quality_metric(),
              v1::Search::QualityMetric_IsValid(search.quality_metric()));
  switch (search.budget_case()) {
    case v1::Search::BUDGET_NOT_SET:
      check.Fail("job.spec.search", "needs a budget: set max_bytes or max_average_bits");
      break;
    case v1::Search::kMaxBytes:
      if (search.max_bytes() <= 0) {
        check.Fail(at + "max_bytes", absl::StrCat("must be positive, is ", search.max_bytes()));
      }
      break;
    case v1::Search::kMaxAverageBits: {
      const double bits = search.max_average_bits();
      if (!std::isfinite(bits) || bits <= 0 || bits > 16) {
        check.Fail(at + "max_average_bits", absl::StrCat("must be in (0, 16], is ", bits));
      } else if (bits_are_good && bits < SmallestAverageBits(spec)) {
        check.Fail(
            at + "max_average_bits",
            absl::StrCat("cannot be met: the smallest candidate stores at least ",
                         SmallestAverageBits(spec), " bits a weight, scales included; is ", bits));
      }
      break;
    }
  }
  check.Range(at + "max_trials", search.max_trials(), 1, 1000);
  check.Range(at + "parallelism", search.parallelism(), 1, 64);
}

void CheckFineTune(FieldChecker& check, const v1::FineTune& tune,
                   const JobValidationOptions& options) {
  const std::string at = "job.spec.fine_tune.";
  check.Range(at + "steps", tune.steps(), 0, 100000);
  check.Known(at + "init", tune.init(), v1::FineTune::Init_IsValid(tune.init()));
  check.Range(at + "loftq_iterations", tune.loftq_iterations(), 1, 10);
  check.Range(at + "rank", tune.rank(), 1, 256);
  check.Interval(at + "alpha", tune.alpha(), tune.alpha() > 0 && tune.alpha() <= 1024, "(0, 1024]");
  check.Interval(at + "learning_rate", tune.learning_rate(),
                 tune.learning_rate() > 0 && tune.learning_rate() <= 1, "(0, 1]");
  if (tune.warmup_steps() < 0 || tune.warmup_steps() > std::max(tune.steps(), 0)) {
    check.Fail(at + "warmup_steps", absl::StrCat("must be from 0 to steps (", tune.steps(),
                                                 "), is ", tune.warmup_steps()));
  }
  check.Range(at + "batch_size", tune.batch_size(), 1, 256);
  check.Range(at + "sequence_length", tune.sequence_length(), 16, 4096);
  check.Interval(at + "dropout", tune.dropout(), tune.dropout() >= 0 && tune.dropout() < 1,
                 "[0, 1)");
  std::set<int> targets;
  for (int i = 0; i < tune.target_modules_size(); ++i) {
    const std::string field = absl::StrCat(at, "target_modules[", i, "]");
    const int target = tune.target_modules(i);
    check.Known(field, target, target != 0 && v1::FineTune::Projection_IsValid(target));
    if (!targets.insert(target).second) check.Fail(field, "is named twice");
  }
  if (tune.micro_batch_size() < 1 || tune.micro_batch_size() > tune.batch_size()) {
    check.Fail(at + "micro_batch_size",
               absl::StrCat("must be from 1 to batch_size (", tune.batch_size(), "), is ",
                            tune.micro_batch_size()));
  }
  check.Known(at + "schedule", tune.schedule(), v1::FineTune::Schedule_IsValid(tune.schedule()));
  check.Interval(at + "weight_decay", tune.weight_decay(),
                 tune.weight_decay() >= 0 && tune.weight_decay() <= 1, "[0, 1]");
  check.Known(at + "compute_type", tune.compute_type(),
              v1::FineTune::ComputeType_IsValid(tune.compute_type()));
  check.Range(at + "evaluate_every", tune.evaluate_every(), 1, 100000);
  check.Range(at + "checkpoint_every", tune.checkpoint_every(), 0, 100000);
  check.Interval(at + "max_gradient_norm", tune.max_gradient_norm(),
                 tune.max_gradient_norm() >= 0 && tune.max_gradient_norm() <= 1000, "[0, 1000]");
  check.Known(at + "data_format", tune.data_format(),
              v1::FineTune::DataFormat_IsValid(tune.data_format()));
  CheckDataset(check, at + "dataset", tune.dataset(), options);
  if (tune.data_format() == v1::FineTune::ALPACA) {
    if (tune.packing()) check.Fail(at + "packing", "needs data_format TEXT");
    if (absl::StartsWith(tune.dataset().uri(), "builtin://")) {
      check.Fail(at + "dataset.uri",
                 absl::StrCat("must be the file:/// of a JSON list with data_format ALPACA, is ",
                              Quoted(tune.dataset().uri())));
    }
  }
  if (tune.has_distillation()) {
    const double weight = tune.distillation().weight();
    check.Interval(at + "distillation.weight", weight, weight > 0 && weight <= 1, "(0, 1]");
    const double temperature = tune.distillation().temperature();
    check.Interval(at + "distillation.temperature", temperature,
                   temperature >= 0.1 && temperature <= 20, "[0.1, 20]");
  }
}

void CheckGgufType(FieldChecker& check, const std::string& field, v1::Export::GgufType type,
                   const std::vector<v1::Export::GgufType>& allowed) {
  if (type == v1::Export::GGUF_TYPE_UNSPECIFIED) return;  // Without a GGUF export: not used.
  if (std::find(allowed.begin(), allowed.end(), type) != allowed.end()) return;
  check.Fail(field, absl::StrCat("must be one of ",
                                 absl::StrJoin(allowed, ", ",
                                               [](std::string* out, v1::Export::GgufType known) {
                                                 out->append(v1::Export::GgufType_Name(known));
                                               }),
                                 ", is ",
                                 v1::Export::GgufType_IsValid(type)
                                     ? v1::Export::GgufType_Name(type)
                                     : absl::StrCat(static_cast<int>(type))));
}

// Why an export cannot hold models of these candidates; empty: it can.
std::string ExportProblem(const v1::CompressionSpec& spec, v1::Export::Format format) {
  const v1::Quantization& quantization = spec.quantization();
  const auto& candidates = spec.search().candidate_bits();
  if (format == v1::Export::HUGGING_FACE || format == v1::Export::FORMAT_UNSPECIFIED) return "";
  const std::string name = v1::Export::Format_Name(format);
  if (spec.pruning().layout() == v1::Pruning::PER_LAYER &&
      (spec.pruning().ratio() > 0 || spec.pruning().has_parameter_ratio())) {
    return absl::StrCat(name,
                        " holds models whose blocks have one shape: it needs pruning.layout "
                        "UNIFORM, not PER_LAYER");
  }
  if (format == v1::Export::GGUF) return "";
  if (format == v1::Export::COMPRESSED_TENSORS) {
    for (const int bits : candidates) {
      const bool held = bits == 16 ||
                        (bits == 8 && quantization.eight_bit() == v1::Quantization::INT8_ROW) ||
                        ((bits == 4 || bits == 8) && IsIntegerGroup(quantization, bits) &&
                         quantization.symmetric());
      if (!held) {
        return absl::StrCat(name,
                            " holds 4 bits as INT4_GROUP and 8 bits as INT8_GROUP, both with "
                            "quantization.symmetric, 8 bits as INT8_ROW, and 16, not ",
                            bits, " bits as they are asked for");
      }
    }
    return "";
  }
  int widths = 0;
  for (const int bits : candidates) {
    const bool held = bits == 16 ||
                      (bits == 4 && quantization.four_bit() != v1::Quantization::INT4_GROUP) ||
                      (bits == 8 && quantization.eight_bit() == v1::Quantization::INT8_ROW);
    if (!held) {
      return absl::StrCat(name, " holds 4 bits as NF4 or FP4, or 8 bits as INT8_ROW, and 16, not ",
                          bits, " bits as they are asked for");
    }
    if (bits != 16) ++widths;
  }
  if (widths > 1) {
    return absl::StrCat(name, " holds one width besides 16: candidate_bits 4 or 8, not both");
  }
  return "";
}

void CheckExport(FieldChecker& check, const v1::CompressionSpec& spec) {
  const v1::Export& exports = spec.export_();
  const std::string at = "job.spec.export.";
  check.Known(at + "dtype", exports.dtype(), v1::Export::DType_IsValid(exports.dtype()));
  std::set<int> seen;
  for (int i = 0; i < exports.formats_size(); ++i) {
    const v1::Export::Format format = exports.formats(i);
    const std::string field = absl::StrCat(at, "formats[", i, "]");
    if (!v1::Export::Format_IsValid(format)) {
      check.Fail(field, absl::StrCat("is not a value this server knows: ", format));
    } else if (!seen.insert(format).second) {
      check.Fail(field, absl::StrCat("names ", v1::Export::Format_Name(format), " twice"));
    } else if (const std::string problem = ExportProblem(spec, format); !problem.empty()) {
      check.Fail(field, problem);
    }
  }
  CheckGgufType(
      check, at + "gguf_four_bit", exports.gguf_four_bit(),
      {v1::Export::Q4_0, v1::Export::Q4_1, v1::Export::Q5_0, v1::Export::Q5_1, v1::Export::Q4_K});
  CheckGgufType(check, at + "gguf_eight_bit", exports.gguf_eight_bit(),
                {v1::Export::Q8_0, v1::Export::Q6_K});
  CheckGgufType(check, at + "gguf_sixteen_bit", exports.gguf_sixteen_bit(),
                {v1::Export::BF16, v1::Export::F16, v1::Export::F32});
  CheckGgufType(
      check, at + "gguf_embedding", exports.gguf_embedding(),
      {v1::Export::F32, v1::Export::F16, v1::Export::BF16, v1::Export::Q8_0, v1::Export::Q4_0,
       v1::Export::Q4_1, v1::Export::Q5_0, v1::Export::Q5_1, v1::Export::Q4_K, v1::Export::Q6_K});
  check.Known(at + "adapter", exports.adapter(), v1::Export::Adapter_IsValid(exports.adapter()));
  if (exports.adapter() == v1::Export::BESIDE && spec.fine_tune().steps() == 0) {
    check.Fail(at + "adapter", "BESIDE needs an adapter: fine_tune.steps is 0");
  }
}

bool IsTaskName(absl::string_view name) {
  const auto is_inner = [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '.' || c == '-';
  };
  return !name.empty() && name.size() <= 63 && absl::ascii_isalnum(name[0]) &&
         std::all_of(name.begin(), name.end(), is_inner);
}

void CheckEvaluationTasks(FieldChecker& check, const v1::Evaluation& evaluation,
                          const JobValidationOptions& options) {
  const std::string at = "job.spec.evaluation.tasks";
  if (evaluation.tasks_size() > kMaxEvaluationTasks) {
    check.Fail(at, absl::StrCat("must be at most ", kMaxEvaluationTasks, ", are ",
                                evaluation.tasks_size()));
    return;
  }
  std::set<std::string> seen;
  for (int i = 0; i < evaluation.tasks_size(); ++i) {
    const v1::EvaluationTask& task = evaluation.tasks(i);
    const std::string field = absl::StrCat(at, "[", i, "].");
    if (!IsTaskName(task.name())) {
      check.Fail(field + "name",
                 absl::StrCat("must match [a-z0-9][a-z0-9_.-]{0,62}, is ", Quoted(task.name())));
    } else if (!seen.insert(task.name()).second) {
      check.Fail(field + "name",
                 absl::StrCat("is taken by an earlier task: ", Quoted(task.name())));
    }
    CheckUri(check, field + "uri", task.uri(), std::array<const char*, 0>{}, options);
    check.Range(field + "limit", task.limit(), 0, 1'000'000);
    if (task.query_suffix().size() > kMaxQuerySuffixBytes) {
      check.Fail(field + "query_suffix", absl::StrCat("must be at most ", kMaxQuerySuffixBytes,
                                                      " bytes, is ", task.query_suffix().size()));
    }
  }
}

void CheckLimits(FieldChecker& check, const v1::Limits& limits) {
  const std::string at = "job.spec.limits.";
  check.Range(at + "max_attempts", limits.max_attempts(), 1, 20);
  const auto seconds = [&](const char* field, bool is_set, int64_t value) {
    if (is_set) check.Range(at + field, value, int64_t{1}, kMaxLimitSeconds);
  };
  seconds("max_queue_seconds", limits.has_max_queue_seconds(), limits.max_queue_seconds());
  seconds("max_run_seconds", limits.has_max_run_seconds(), limits.max_run_seconds());
  seconds("max_device_seconds", limits.has_max_device_seconds(), limits.max_device_seconds());
  seconds("max_search_seconds", limits.has_max_search_seconds(), limits.max_search_seconds());
  check.Range(at + "min_device_memory_bytes", limits.min_device_memory_bytes(), int64_t{0},
              kMaxDeviceMemoryBytes);
  if (limits.has_device_memory_bytes() && limits.device_memory_bytes() < kLeastDeviceMemoryBytes) {
    check.Fail(at + "device_memory_bytes",
               absl::StrCat("must be at least ", kLeastDeviceMemoryBytes, " bytes, is ",
                            limits.device_memory_bytes()));
  }
}

void CheckSpec(FieldChecker& check, const v1::CompressionSpec& spec, const std::string& project,
               const JobValidationOptions& options) {
  CheckModelUri(check, spec.model().uri(), project, options);

  CheckDataset(check, "job.spec.calibration.dataset", spec.calibration().dataset(), options);
  check.Range("job.spec.calibration.sample_count", spec.calibration().sample_count(), 1, 1024);
  check.Range("job.spec.calibration.sequence_length", spec.calibration().sequence_length(), 16,
              4096);

  CheckPruning(check, spec.pruning());

  CheckQuantization(check, spec);

  CheckSearch(check, spec);
  CheckFineTune(check, spec.fine_tune(), options);

  const v1::Evaluation& evaluation = spec.evaluation();
  CheckDataset(check, "job.spec.evaluation.dataset", evaluation.dataset(), options);
  check.Range("job.spec.evaluation.sequence_length", evaluation.sequence_length(), 16, 8192);
  if (evaluation.stride() < 1 || evaluation.stride() > evaluation.sequence_length()) {
    check.Fail("job.spec.evaluation.stride",
               absl::StrCat("must be from 1 to sequence_length (", evaluation.sequence_length(),
                            "), is ", evaluation.stride()));
  }
  check.Range("job.spec.evaluation.max_selection_tokens", evaluation.max_selection_tokens(), 256,
              1'000'000);
  check.Range("job.spec.evaluation.max_test_tokens", evaluation.max_test_tokens(), 256, 10'000'000);
  check.Known("job.spec.evaluation.compute_type", evaluation.compute_type(),
              v1::Evaluation::ComputeType_IsValid(evaluation.compute_type()));
  CheckEvaluationTasks(check, evaluation, options);

  CheckExport(check, spec);
  CheckLimits(check, spec.limits());
}

// Of the fields that say which job is asked for, as they were sent: so that a later version with
// other defaults still knows its own requests.
std::string Fingerprint(const v1::CreateJobRequest& request) {
  v1::CreateJobRequest asked;
  asked.set_parent(request.parent());
  asked.set_job_id(request.job_id());
  v1::CompressionJob& job = *asked.mutable_job();
  job.set_display_name(request.job().display_name());
  *job.mutable_labels() = request.job().labels();
  *job.mutable_spec() = request.job().spec();
  job.set_priority(request.job().priority());
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);  // Labels are a map.
    asked.SerializeToCodedStream(&coded);
  }
  return Sha256Hex(bytes);
}

}  // namespace

std::vector<FieldViolation> LabelViolations(
    const std::string& field, const google::protobuf::Map<std::string, std::string>& labels) {
  std::vector<FieldViolation> violations;
  if (labels.size() > kMaxLabels) {
    violations.push_back(
        {field, absl::StrCat("must be at most ", kMaxLabels, ", are ", labels.size())});
  }
  for (const auto& [key, value] :
       std::map<std::string, std::string>(labels.begin(), labels.end())) {
    if (!IsLabelKey(key)) {
      violations.push_back(
          {field, absl::StrCat("keys must match [a-z0-9_-]{1,63}, one is ", Quoted(key))});
    } else if (value.size() > kMaxLabelValueBytes) {
      violations.push_back(
          {absl::StrCat(field, "[", key, "]"),
           absl::StrCat("must be at most ", kMaxLabelValueBytes, " bytes, is ", value.size())});
    } else if (HasZeroByte(value)) {
      violations.push_back({absl::StrCat(field, "[", key, "]"), "must not hold a zero byte"});
    }
  }
  return violations;
}

absl::StatusOr<NewJob> ValidateCreateJob(const v1::CreateJobRequest& request,
                                         const JobValidationOptions& options) {
  FieldChecker check;
  NewJob result;
  if (request.parent().empty()) {
    result.project = "default";
  } else if (absl::StatusOr<std::string> project = ParseProjectName(request.parent());
             project.ok()) {
    result.project = *project;
  } else {
    check.Fail("parent", absl::StrCat("must be projects/{project} with a project of "
                                      "[a-z][a-z0-9-]{0,62}, is ",
                                      Quoted(request.parent())));
  }
  if (!request.job_id().empty() && !IsResourceId(request.job_id())) {
    check.Fail("job_id",
               absl::StrCat("must match [a-z][a-z0-9-]{0,62}, is ", Quoted(request.job_id())));
  }
  if (request.request_id().size() > kMaxRequestIdBytes) {
    check.Fail("request_id", absl::StrCat("must be at most ", kMaxRequestIdBytes, " bytes, is ",
                                          request.request_id().size()));
  } else if (HasZeroByte(request.request_id())) {
    check.Fail("request_id", "must not hold a zero byte");
  }
  const v1::CompressionJob& job = request.job();
  if (job.display_name().size() > kMaxDisplayNameBytes) {
    check.Fail("job.display_name", absl::StrCat("must be at most ", kMaxDisplayNameBytes,
                                                " bytes, is ", job.display_name().size()));
  }
  for (const FieldViolation& violation : LabelViolations("job.labels", job.labels())) {
    check.Fail(violation.field, violation.description);
  }
  check.Range("job.priority", job.priority(), -100, 100);

  result.job_id = request.job_id();
  result.request_id = request.request_id();
  result.fingerprint = Fingerprint(request);
  result.job.set_display_name(job.display_name());
  *result.job.mutable_labels() = job.labels();
  result.job.set_priority(job.priority());
  *result.job.mutable_spec() = job.spec();
  FillDefaults(*result.job.mutable_spec());
  CheckSpec(check, result.job.spec(), result.project, options);
  if (absl::Status status = check.status(); !status.ok()) return status;

  auto& bits = *result.job.mutable_spec()->mutable_search()->mutable_candidate_bits();
  std::sort(bits.begin(), bits.end());
  return result;
}

}  // namespace qpruner::server
