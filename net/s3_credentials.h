// Credentials of an S3 storage: from a file, or from the environment.
#ifndef QPRUNER_NET_S3_CREDENTIALS_H_
#define QPRUNER_NET_S3_CREDENTIALS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "net/aws_signature.h"

namespace qpruner {

// Of the section [default] of an AWS credentials file: aws_access_key_id, aws_secret_access_key
// and, if it is there, aws_session_token. INVALID_ARGUMENT names what is missing, never a value.
absl::StatusOr<AwsCredentials> ParseAwsCredentials(absl::string_view text);

// From `file`; if it is empty, from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN,
// which are taken out of the environment: children inherit it. INVALID_ARGUMENT: not all there.
absl::StatusOr<AwsCredentials> LoadAwsCredentials(const std::string& file);

}  // namespace qpruner

#endif  // QPRUNER_NET_S3_CREDENTIALS_H_
