#include "server/auth/token_table.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "base/resource_name.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "proto/status_codec.h"

namespace qpruner::server {
namespace {

using google::protobuf::util::TimeUtil;
using internal::v1::TokenEntry;
using internal::v1::TokenFile;

constexpr int kMaxTokens = 10000;
constexpr int64_t kMaxFileBytes = 16 << 20;
constexpr int kTokenBytes = 32;

bool IsLowerAlnum(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

// [a-z0-9][a-z0-9.-]{0,62}, as the names of workers are.
bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= 63 && IsLowerAlnum(text[0]) &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return IsLowerAlnum(c) || c == '.' || c == '-'; });
}

bool IsNamePattern(absl::string_view text) {
  if (text == "*") return true;
  return absl::EndsWith(text, "*") ? IsName(text.substr(0, text.size() - 1)) : IsName(text);
}

absl::StatusOr<TokenFile> ParseFile(absl::string_view json) {
  TokenFile file;
  const google::protobuf::util::Status parsed = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &file);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("not JSON of a token file: ", std::string(parsed.message())));
  }
  return file;
}

absl::StatusOr<Principal> PrincipalOf(const TokenEntry& entry) {
  const auto bad = [&entry](absl::string_view rule) {
    return absl::InvalidArgumentError(absl::StrCat("token \"", entry.id(), "\": ", rule));
  };
  if (!IsName(entry.id())) return bad("id must match [a-z0-9][a-z0-9.-]{0,62}");
  if (!IsSha256Hex(entry.sha256())) {
    return bad("sha256 must be the token's SHA-256, 64 lower-case hexadecimal digits");
  }
  Principal principal{.id = entry.id()};
  switch (entry.role()) {
    case TokenEntry::CLIENT:
      principal.role = Role::kClient;
      break;
    case TokenEntry::WORKER:
      principal.role = Role::kWorker;
      break;
    case TokenEntry::ADMIN:
      principal.role = Role::kAdmin;
      break;
    default:
      return bad("role must be CLIENT, WORKER or ADMIN");
  }
  principal.projects = {entry.projects().begin(), entry.projects().end()};
  principal.workers = {entry.workers().begin(), entry.workers().end()};
  if (principal.projects.empty() == (principal.role == Role::kClient)) {
    return bad("projects must be given for a CLIENT, and for no other role");
  }
  if (principal.workers.empty() == (principal.role == Role::kWorker)) {
    return bad("workers must be given for a WORKER, and for no other role");
  }
  for (const std::string& project : principal.projects) {
    if (!IsResourceId(project)) {
      return bad(absl::StrCat("projects: \"", project, "\" must match [a-z][a-z0-9-]{0,62}"));
    }
  }
  for (const std::string& worker : principal.workers) {
    if (!IsNamePattern(worker)) {
      return bad(absl::StrCat("workers: \"", worker,
                              "\" must match [a-z0-9][a-z0-9.-]{0,62}, with an optional \"*\" at "
                              "the end"));
    }
  }
  return principal;
}

}  // namespace

bool Principal::MayUseProject(absl::string_view project) const {
  return role == Role::kAnyone || role == Role::kAdmin ||
         (role == Role::kClient &&
          std::find(projects.begin(), projects.end(), project) != projects.end());
}

bool Principal::MayBeWorker(absl::string_view worker) const {
  if (role == Role::kAnyone) return true;
  return role == Role::kWorker &&
         std::any_of(workers.begin(), workers.end(), [&](const std::string& pattern) {
           return absl::EndsWith(pattern, "*")
                      ? absl::StartsWith(worker, pattern.substr(0, pattern.size() - 1))
                      : worker == pattern;
         });
}

absl::StatusOr<TokenTable> TokenTable::Create(const TokenFile& file) {
  if (file.tokens_size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens: at most ", kMaxTokens, " are read, there are ", file.tokens_size()));
  }
  TokenTable table;
  std::set<std::string> ids, hashes;
  for (const TokenEntry& token : file.tokens()) {
    ASSIGN_OR_RETURN(Principal principal, PrincipalOf(token));
    if (!ids.insert(token.id()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token \"", token.id(), "\": id is not unique"));
    }
    if (!hashes.insert(token.sha256()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token \"", token.id(), "\": sha256 is another token's, too"));
    }
    Entry entry;
    std::copy(token.sha256().begin(), token.sha256().end(), entry.sha256.begin());
    entry.principal = std::move(principal);
    if (token.has_expire_time()) {
      entry.expire_time =
          absl::FromUnixMicros(TimeUtil::TimestampToMicroseconds(token.expire_time()));
    }
    table.entries_.push_back(std::move(entry));
  }
  return table;
}

absl::StatusOr<TokenTable> TokenTable::Parse(absl::string_view json) {
  ASSIGN_OR_RETURN(const TokenFile file, ParseFile(json));
  return Create(file);
}

absl::StatusOr<Principal> TokenTable::Find(absl::string_view token, absl::Time now) const {
  const std::string digest = Sha256Hex(token);
  const Entry* found = nullptr;
  // No early end: the time must not tell how far the search went.
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.sha256.data(), digest.data(), entry.sha256.size()) == 0) found = &entry;
  }
  if (found == nullptr) {
    return WithErrorInfo(absl::UnauthenticatedError("The token is not one that this server knows"),
                         "TOKEN_UNKNOWN");
  }
  if (now >= found->expire_time) {
    return WithErrorInfo(absl::UnauthenticatedError(absl::StrCat(
                             "The token ", found->principal.id, " expired at ",
                             absl::FormatTime(found->expire_time, absl::UTCTimeZone()))),
                         "TOKEN_EXPIRED");
  }
  return found->principal;
}

std::string MintToken(IdGenerator& random) {
  return absl::StrCat("qpruner_", random.Hex(kTokenBytes));
}

absl::StatusOr<std::string> AddNewToken(const NewTokenOptions& options, IdGenerator& random) {
  const std::string token = MintToken(random);
  TokenEntry entry;
  entry.set_id(options.id);
  entry.set_sha256(Sha256Hex(token));
  TokenEntry::Role role;
  if (TokenEntry::Role_Parse(absl::AsciiStrToUpper(options.role), &role)) entry.set_role(role);
  entry.mutable_projects()->Assign(options.projects.begin(), options.projects.end());
  entry.mutable_workers()->Assign(options.workers.begin(), options.workers.end());
  if (!options.expires.empty()) {
    absl::Time expires;
    std::string error;
    if (!absl::ParseTime("%Y-%m-%d", options.expires, &expires, &error) &&
        !absl::ParseTime(absl::RFC3339_full, options.expires, &expires, &error)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--expires must be a date such as 2027-01-31 or a time such as "
                       "2027-01-31T12:00:00Z, is ",
                       options.expires));
    }
    *entry.mutable_expire_time() = TimeUtil::MicrosecondsToTimestamp(absl::ToUnixMicros(expires));
  }

  TokenFile file;
  absl::StatusOr<std::string> json = ReadFile(options.file, kMaxFileBytes);
  if (json.ok()) {
    ASSIGN_OR_RETURN(file, ParseFile(*json));
  } else if (!absl::IsNotFound(json.status())) {
    return json.status();
  }
  *file.add_tokens() = entry;
  RETURN_IF_ERROR(TokenTable::Create(file).status());
  google::protobuf::util::JsonPrintOptions print;
  print.add_whitespace = true;
  print.preserve_proto_field_names = true;
  std::string text;
  const auto printed = google::protobuf::util::MessageToJsonString(file, &text, print);
  if (!printed.ok()) return absl::InternalError(std::string(printed.message()));
  RETURN_IF_ERROR(WriteFileDurably(options.file, text, 0600));
  return token;
}

}  // namespace qpruner::server
