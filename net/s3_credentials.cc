#include "net/s3_credentials.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/durable_file.h"
#include "base/environment_secret.h"
#include "base/status_macros.h"

namespace qpruner {
absl::StatusOr<AwsCredentials> ParseAwsCredentials(absl::string_view text) {
  AwsCredentials credentials;
  // What stands before any section counts, too.
  bool in_default = true;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line[0] == '[') {
      in_default = line == "[default]";
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    const absl::string_view key = absl::StripAsciiWhitespace(parts.first);
    const std::string value(absl::StripAsciiWhitespace(parts.second));
    if (!in_default) continue;
    if (key == "aws_access_key_id") credentials.access_key_id = value;
    if (key == "aws_secret_access_key") credentials.secret_access_key = value;
    if (key == "aws_session_token") credentials.session_token = value;
  }
  if (credentials.access_key_id.empty() || credentials.secret_access_key.empty()) {
    return absl::InvalidArgumentError(
        "needs the lines \"aws_access_key_id = ...\" and \"aws_secret_access_key = ...\" in its "
        "section [default]");
  }
  return credentials;
}

absl::StatusOr<AwsCredentials> LoadAwsCredentials(const std::string& file) {
  AwsCredentials found{TakeFromEnvironment("AWS_ACCESS_KEY_ID"),
                       TakeFromEnvironment("AWS_SECRET_ACCESS_KEY"),
                       TakeFromEnvironment("AWS_SESSION_TOKEN")};
  if (!file.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(file, 64 << 10));
    auto parsed = ParseAwsCredentials(text);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(file, " ", parsed.status().message()));
    }
    return parsed;
  }
  if (!found.access_key_id.empty() && !found.secret_access_key.empty()) return found;
  return absl::InvalidArgumentError(
      "S3 needs credentials: --s3-credentials-file, or AWS_ACCESS_KEY_ID and "
      "AWS_SECRET_ACCESS_KEY in the environment");
}

}  // namespace qpruner
