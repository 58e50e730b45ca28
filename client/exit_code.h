// What `qpruner` tells the shell. Listed in docs/cli.md and `qpruner --help`: scripts rely on them.
#ifndef QPRUNER_CLIENT_EXIT_CODE_H_
#define QPRUNER_CLIENT_EXIT_CODE_H_

#include "absl/status/status.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

enum class ExitCode {
  kOk = 0,
  // The job that was waited for FAILED.
  kJobFailed = 1,
  // The command line, a job file or a request is wrong.
  kBadInput = 2,
  // No answer from the server.
  kUnreachable = 3,
  // No such job, artifact or file.
  kNotFound = 4,
  // The job that was waited for was CANCELLED.
  kCancelled = 5,
  // The job's state does not allow it, or the name is taken.
  kConflict = 6,
  // A local file could not be read or written, or downloaded bytes were damaged.
  kFileTrouble = 7,
  // The server knows the caller's token not, or it does not allow this.
  kDenied = 8,
  // Any other error.
  kError = 9,
  // Interrupted; the job goes on.
  kInterrupted = 130,
};

// Of an error that a call to the server gave.
inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return ExitCode::kBadInput;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitCode::kUnreachable;
    case absl::StatusCode::kNotFound:
      return ExitCode::kNotFound;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return ExitCode::kConflict;
    case absl::StatusCode::kCancelled:
      return ExitCode::kInterrupted;
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return ExitCode::kDenied;
    case absl::StatusCode::kDataLoss:
      return ExitCode::kFileTrouble;
    default:
      return ExitCode::kError;
  }
}

// Of a job that has ended.
inline ExitCode ExitCodeOf(v1::CompressionJob::State state) {
  switch (state) {
    case v1::CompressionJob::SUCCEEDED:
      return ExitCode::kOk;
    case v1::CompressionJob::CANCELLED:
      return ExitCode::kCancelled;
    case v1::CompressionJob::FAILED:
      return ExitCode::kJobFailed;
    default:
      return ExitCode::kError;
  }
}

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_EXIT_CODE_H_
