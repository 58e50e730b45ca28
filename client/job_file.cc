#include "client/job_file.h"

#include <google/protobuf/descriptor.h>
#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/durable_file.h"
#include "base/status_macros.h"
#include "client/message_reader.h"
#include "proto/status_codec.h"

namespace qpruner {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

bool IsWritable(const FieldDescriptor& field) {
  switch (field.number()) {
    case v1::CompressionJob::kDisplayNameFieldNumber:
    case v1::CompressionJob::kLabelsFieldNumber:
    case v1::CompressionJob::kSpecFieldNumber:
    case v1::CompressionJob::kPriorityFieldNumber:
      return true;
    default:
      return false;
  }
}

std::string RefuseOutputOnly(const FieldDescriptor& field) {
  if (field.containing_type() != v1::CompressionJob::descriptor() || IsWritable(field)) return "";
  return "is set by the server; a job file has display_name, labels, priority and spec";
}

std::string Describe(const std::string& source, const std::map<std::string, int>& lines, int line,
                     const std::string& path, const std::string& description) {
  if (line == 0) {
    // The field itself, or the nearest one around it that the file has.
    std::string at = path;
    while (!at.empty() && !lines.contains(at)) {
      const size_t cut = at.find_last_of(".[");
      at = cut == std::string::npos ? "" : at.substr(0, cut);
    }
    if (!at.empty()) line = lines.at(at);
  }
  std::string out = source;
  if (line > 0) absl::StrAppend(&out, ":", line);
  absl::StrAppend(&out, ": ");
  if (!path.empty()) absl::StrAppend(&out, path, ": ");
  return absl::StrCat(out, description);
}

absl::Status ToStatus(const std::string& source, const ReadResult& result) {
  if (result.problems.empty()) return absl::OkStatus();
  constexpr size_t kShown = 20;
  std::vector<std::string> said;
  for (const ReadProblem& problem : result.problems) {
    if (said.size() == kShown) {
      said.push_back(absl::StrCat("… and ", result.problems.size() - kShown, " more"));
      break;
    }
    said.push_back(Describe(source, {}, problem.line, problem.path, problem.description));
  }
  return absl::InvalidArgumentError(absl::StrJoin(said, "\n"));
}

void ResolveUri(std::string* uri, const std::string& folder) {
  if (!uri->empty()) *uri = LocalUri(*uri, folder);
}

void ResolveUris(v1::CompressionJob& job, const std::string& folder) {
  if (!job.has_spec()) return;
  v1::CompressionSpec& spec = *job.mutable_spec();
  if (spec.has_model()) ResolveUri(spec.mutable_model()->mutable_uri(), folder);
  if (spec.calibration().has_dataset()) {
    ResolveUri(spec.mutable_calibration()->mutable_dataset()->mutable_uri(), folder);
  }
  if (spec.fine_tune().has_dataset()) {
    ResolveUri(spec.mutable_fine_tune()->mutable_dataset()->mutable_uri(), folder);
  }
  if (spec.evaluation().has_dataset()) {
    ResolveUri(spec.mutable_evaluation()->mutable_dataset()->mutable_uri(), folder);
  }
  if (spec.has_evaluation()) {
    for (v1::EvaluationTask& task : *spec.mutable_evaluation()->mutable_tasks()) {
      ResolveUri(task.mutable_uri(), folder);
    }
  }
}

// The shortest digits that read back as the same number.
std::string ShortestNumber(double value) {
  for (int digits = 6; digits <= 17; ++digits) {
    char text[40];
    snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::stod(text) == value) return text;
  }
  return absl::StrCat(value);
}

void Emit(YAML::Emitter& out, const Message& message);

void EmitValue(YAML::Emitter& out, const Message& message, const FieldDescriptor& field,
               int index) {
  const Reflection& r = *message.GetReflection();
  const bool list = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      out << (list ? r.GetRepeatedInt32(message, &field, index) : r.GetInt32(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_INT64:
      out << (list ? r.GetRepeatedInt64(message, &field, index) : r.GetInt64(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_UINT32:
      out << (list ? r.GetRepeatedUInt32(message, &field, index) : r.GetUInt32(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_UINT64:
      out << (list ? r.GetRepeatedUInt64(message, &field, index) : r.GetUInt64(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      out << ShortestNumber(list ? r.GetRepeatedDouble(message, &field, index)
                                 : r.GetDouble(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_FLOAT:
      out << ShortestNumber(static_cast<double>(list ? r.GetRepeatedFloat(message, &field, index)
                                                     : r.GetFloat(message, &field)));
      return;
    case FieldDescriptor::CPPTYPE_BOOL:
      out << (list ? r.GetRepeatedBool(message, &field, index) : r.GetBool(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_ENUM:
      out << (list ? r.GetRepeatedEnum(message, &field, index) : r.GetEnum(message, &field))
                 ->name();
      return;
    case FieldDescriptor::CPPTYPE_STRING:
      out << YAML::DoubleQuoted
          << (list ? r.GetRepeatedString(message, &field, index) : r.GetString(message, &field));
      return;
    case FieldDescriptor::CPPTYPE_MESSAGE:
      Emit(out,
           list ? r.GetRepeatedMessage(message, &field, index) : r.GetMessage(message, &field));
      return;
  }
}

void Emit(YAML::Emitter& out, const Message& message) {
  const Reflection& r = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  r.ListFields(message, &fields);
  out << YAML::BeginMap;
  for (const FieldDescriptor* field : fields) {
    out << YAML::Key << field->name() << YAML::Value;
    if (field->is_map()) {
      std::vector<const Message*> pairs;
      for (int i = 0; i < r.FieldSize(message, field); ++i) {
        pairs.push_back(&r.GetRepeatedMessage(message, field, i));
      }
      const auto text = [](const Message& pair, int number) {
        return pair.GetReflection()->GetString(pair,
                                               pair.GetDescriptor()->FindFieldByNumber(number));
      };
      std::sort(pairs.begin(), pairs.end(),
                [&](const Message* a, const Message* b) { return text(*a, 1) < text(*b, 1); });
      out << YAML::BeginMap;
      for (const Message* pair : pairs) {
        out << YAML::Key << text(*pair, 1) << YAML::Value << YAML::DoubleQuoted << text(*pair, 2);
      }
      out << YAML::EndMap;
    } else if (field->is_repeated()) {
      out << YAML::Flow << YAML::BeginSeq;
      for (int i = 0; i < r.FieldSize(message, field); ++i) EmitValue(out, message, *field, i);
      out << YAML::EndSeq;
    } else {
      EmitValue(out, message, *field, 0);
    }
  }
  out << YAML::EndMap;
}

}  // namespace

std::string LocalUri(absl::string_view uri_or_path, const std::string& folder) {
  const std::string text(uri_or_path);
  if (absl::StrContains(text, "://")) return text;
  std::filesystem::path path(text);
  if (path.is_relative()) {
    std::error_code ignored;
    path = std::filesystem::absolute(folder.empty() ? "." : folder, ignored) / path;
  }
  std::string absolute = path.lexically_normal().string();
  if (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();
  return absl::StrCat("file://", absolute);
}

absl::StatusOr<JobFile> ParseJobFile(absl::string_view content, const std::string& source,
                                     const std::string& folder) {
  absl::StatusOr<YAML::Node> node = ParseYaml(content);
  if (!node.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", node.status().message()));
  }
  JobFile file;
  file.source = source;
  ReadResult result = ReadMessage(*node, file.job, RefuseOutputOnly);
  RETURN_IF_ERROR(ToStatus(source, result));
  file.lines = std::move(result.lines);
  ResolveUris(file.job, folder);
  return file;
}

absl::StatusOr<JobFile> ReadJobFile(const std::string& path) {
  if (path == "-") {
    std::string content;
    char buffer[4096];
    while (content.size() <= kMaxMessageFileBytes &&
           std::cin.read(buffer, sizeof buffer).gcount() > 0) {
      content.append(buffer, static_cast<size_t>(std::cin.gcount()));
    }
    return ParseJobFile(content, "standard input", ".");
  }
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path, kMaxMessageFileBytes));
  return ParseJobFile(content, path, std::filesystem::path(path).parent_path().string());
}

absl::Status ApplyOverride(absl::string_view assignment, JobFile& file) {
  const size_t equals = assignment.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--set ", assignment, ": must be FIELD=VALUE, such as spec.pruning.ratio=0.2"));
  }
  const std::string source = absl::StrCat("--set ", assignment);
  const absl::string_view path = assignment.substr(0, equals);
  const absl::string_view text = assignment.substr(equals + 1);
  absl::StatusOr<YAML::Node> value =
      text.empty() ? absl::StatusOr<YAML::Node>(YAML::Node()) : ParseYaml(text);
  if (!value.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", value.status().message()));
  }
  ReadResult result = ReadField(path, *value, file.job, RefuseOutputOnly);
  for (ReadProblem& problem : result.problems) problem.line = 0;
  RETURN_IF_ERROR(ToStatus(source, result));
  for (const auto& [set, line] : result.lines) file.lines.erase(set);
  ResolveUris(file.job, ".");
  return absl::OkStatus();
}

std::string FormatJobFile(const v1::CompressionJob& job) {
  v1::CompressionJob writable;
  writable.set_display_name(job.display_name());
  *writable.mutable_labels() = job.labels();
  if (job.has_spec()) *writable.mutable_spec() = job.spec();
  writable.set_priority(job.priority());
  YAML::Emitter out;
  Emit(out, writable);
  return absl::StrCat(out.c_str(), "\n");
}

std::vector<std::string> DescribeJobError(const absl::Status& status, const JobFile& file) {
  std::vector<std::string> said;
  for (const FieldViolation& violation : FieldViolations(status)) {
    // A request names its fields from the outside: "job.spec...".
    std::string path = violation.field;
    if (absl::StartsWith(path, "job.")) path = path.substr(4);
    said.push_back(Describe(file.source, file.lines, 0, path, violation.description));
  }
  if (said.empty()) said.push_back(std::string(status.message()));
  return said;
}

}  // namespace qpruner
