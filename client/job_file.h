// Job files: YAML or JSON of the writable part of a CompressionJob, which is display_name, labels,
// priority and spec.
#ifndef QPRUNER_CLIENT_JOB_FILE_H_
#define QPRUNER_CLIENT_JOB_FILE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

struct JobFile {
  // For messages, such as "job.yaml".
  std::string source;
  v1::CompressionJob job;
  // Line of each field in the file, by path such as "spec.pruning.ratio".
  std::map<std::string, int> lines;
};

// INVALID_ARGUMENT lists every problem, one a line: "job.yaml:12: spec.pruning.ratoi: unknown
// field; did you mean "ratio"?". `source` is the file's name, for messages. See message_reader.h
// for what is refused. A uri without a scheme is a path: it is resolved against `folder` and
// becomes file:///absolute/path.
absl::StatusOr<JobFile> ParseJobFile(absl::string_view content, const std::string& source,
                                     const std::string& folder);

// Reads the file at `path`, or standard input if it is "-". NOT_FOUND and others: it cannot be
// read.
absl::StatusOr<JobFile> ReadJobFile(const std::string& path);

// Applies "spec.pruning.ratio=0.2" over what the file says. The value is YAML: lists are [4, 8].
// INVALID_ARGUMENT names the assignment.
absl::Status ApplyOverride(absl::string_view assignment, JobFile& file);

// file:///absolute/path of a local path, resolved against `folder`; a uri with a scheme stays as it
// is.
std::string LocalUri(absl::string_view uri_or_path, const std::string& folder);

// The job's writable part as a job file in YAML, with the spec's defaults as the server filled them
// in: reading it gives the same messages again.
std::string FormatJobFile(const v1::CompressionJob& job);

// A server's complaints about fields, with the lines of the file they stand in. Other errors give
// their message.
std::vector<std::string> DescribeJobError(const absl::Status& status, const JobFile& file);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_JOB_FILE_H_
