// Conversions between absl::Status and google.rpc.Status, details included.
//
// Every error that leaves QPruner carries a google.rpc.ErrorInfo; one about fields also a
// google.rpc.BadRequest. Both travel inside absl::Status as payloads, so that layers without
// protobuf services can make and pass them.
#ifndef QPRUNER_PROTO_STATUS_CODEC_H_
#define QPRUNER_PROTO_STATUS_CODEC_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"

namespace qpruner {

// One bad field of a request: "spec.pruning.ratio", "must be in [0, 1), is 1.5".
struct FieldViolation {
  std::string field;
  std::string description;
};

// INVALID_ARGUMENT that names every bad field, with BadRequest and ErrorInfo INVALID_FIELDS; of
// very many the first ones and how many more there are, the last with an empty field. `violations`
// must not be empty.
absl::Status BadRequestError(const std::vector<FieldViolation>& violations);

// Adds ErrorInfo{reason, domain "qpruner", metadata} if `status` is an error without one.
// `reason` is UPPER_SNAKE_CASE.
absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata = {});

// RESOURCE_EXHAUSTED of a quota: with ErrorInfo, QuotaFailure{subject, message} and RetryInfo.
// `subject` is what the quota is of, such as "projects/default".
absl::Status QuotaError(absl::string_view reason, const std::string& subject,
                        const std::string& message, absl::Duration retry_after);
// Adds RetryInfo{retry_after} if `status` is an error: the same call may go better then.
absl::Status WithRetryInfo(absl::Status status, absl::Duration retry_after);
// The delay of the status's RetryInfo; nothing if there is none.
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

// The reason of the status's ErrorInfo; empty if there is none.
std::string ErrorReason(const absl::Status& status);
// The fields of the status's BadRequest; empty if there is none.
std::vector<FieldViolation> FieldViolations(const absl::Status& status);

// Lossless both ways for the details above, but for bytes of a message that are not UTF-8. Errors
// without ErrorInfo get one named after their code.
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);

}  // namespace qpruner

#endif  // QPRUNER_PROTO_STATUS_CODEC_H_
