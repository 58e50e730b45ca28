#include "proto/status_codec.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/utf8.h"
#include "google/rpc/error_details.pb.h"

namespace qpruner {
namespace {

constexpr absl::string_view kErrorInfoUrl = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr absl::string_view kBadRequestUrl = "type.googleapis.com/google.rpc.BadRequest";
constexpr absl::string_view kQuotaFailureUrl = "type.googleapis.com/google.rpc.QuotaFailure";
constexpr absl::string_view kRetryInfoUrl = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kDomain[] = "qpruner";
// gRPC sends what is wrong with a request as a message and, in base64, twice in the details;
// clients take 8 KiB of headers.
constexpr size_t kMaxViolationsBytes = 1800;
constexpr size_t kMaxViolationBytes = 600;

// As gRPC writes it into a header.
size_t EscapedBytes(absl::string_view text) {
  return text.size() + 2 * static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
                         return c < ' ' || c > '~' || c == '%';
                       }));
}

template <typename Message>
std::optional<Message> Payload(const absl::Status& status, absl::string_view url) {
  const auto payload = status.GetPayload(url);
  Message message;
  if (!payload || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

}  // namespace

absl::Status BadRequestError(const std::vector<FieldViolation>& all) {
  std::vector<FieldViolation> violations;
  size_t bytes = 0;
  for (const FieldViolation& violation : all) {
    FieldViolation cut{std::string(CutUtf8(violation.field, kMaxViolationBytes / 3)),
                       std::string(CutUtf8(violation.description, kMaxViolationBytes))};
    bytes += EscapedBytes(cut.field) + EscapedBytes(cut.description);
    if (bytes > kMaxViolationsBytes && !violations.empty()) {
      violations.push_back({"", absl::StrCat("and ", all.size() - violations.size(), " more")});
      break;
    }
    violations.push_back(std::move(cut));
  }
  google::rpc::BadRequest bad_request;
  for (const FieldViolation& violation : violations) {
    auto* field = bad_request.add_field_violations();
    field->set_field(ToUtf8(violation.field));
    field->set_description(ToUtf8(violation.description));
  }
  absl::Status status = absl::InvalidArgumentError(
      absl::StrJoin(violations, "; ", [](std::string* out, const FieldViolation& violation) {
        absl::StrAppend(out, violation.field, violation.field.empty() ? "" : ": ",
                        violation.description);
      }));
  status.SetPayload(kBadRequestUrl, absl::Cord(bad_request.SerializeAsString()));
  return WithErrorInfo(std::move(status), "INVALID_FIELDS");
}

absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata) {
  if (status.ok() || status.GetPayload(kErrorInfoUrl)) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  status.SetPayload(kErrorInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Status QuotaError(absl::string_view reason, const std::string& subject,
                        const std::string& message, absl::Duration retry_after) {
  absl::Status status = absl::ResourceExhaustedError(message);
  google::rpc::QuotaFailure failure;
  failure.add_violations()->set_subject(subject);
  failure.mutable_violations(0)->set_description(message);
  status.SetPayload(kQuotaFailureUrl, absl::Cord(failure.SerializeAsString()));
  return WithErrorInfo(WithRetryInfo(std::move(status), retry_after), reason,
                       {{"subject", subject}});
}

absl::Status WithRetryInfo(absl::Status status, absl::Duration retry_after) {
  if (status.ok()) return status;
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(retry_after));
  status.SetPayload(kRetryInfoUrl, absl::Cord(retry.SerializeAsString()));
  return status;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto retry = Payload<google::rpc::RetryInfo>(status, kRetryInfoUrl);
  if (!retry || !retry->has_retry_delay()) return std::nullopt;
  return absl::Seconds(retry->retry_delay().seconds()) +
         absl::Nanoseconds(retry->retry_delay().nanos());
}

std::string ErrorReason(const absl::Status& status) {
  const auto info = Payload<google::rpc::ErrorInfo>(status, kErrorInfoUrl);
  return info ? info->reason() : "";
}

std::vector<FieldViolation> FieldViolations(const absl::Status& status) {
  std::vector<FieldViolation> violations;
  if (const auto bad_request = Payload<google::rpc::BadRequest>(status, kBadRequestUrl)) {
    for (const auto& field : bad_request->field_violations()) {
      violations.push_back({field.field(), field.description()});
    }
  }
  return violations;
}

google::rpc::Status ToRpcStatus(const absl::Status& original) {
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(original.code()));
  if (original.ok()) return proto;
  const absl::Status status = WithErrorInfo(original, absl::StatusCodeToString(original.code()));
  proto.set_message(ToUtf8(status.message()));
  status.ForEachPayload([&proto](absl::string_view url, const absl::Cord& payload) {
    auto* detail = proto.add_details();
    detail->set_type_url(std::string(url));
    detail->set_value(std::string(payload));
  });
  return proto;
}

absl::Status FromRpcStatus(const google::rpc::Status& proto) {
  absl::Status status(static_cast<absl::StatusCode>(proto.code()), proto.message());
  if (status.ok()) return status;
  for (const auto& detail : proto.details()) {
    status.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return status;
}

}  // namespace qpruner
