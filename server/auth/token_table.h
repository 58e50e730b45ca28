// The bearer tokens that a server accepts.
#ifndef QPRUNER_SERVER_AUTH_TOKEN_TABLE_H_
#define QPRUNER_SERVER_AUTH_TOKEN_TABLE_H_

#include <array>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/id_generator.h"
#include "qpruner/internal/v1/token_file.pb.h"
#include "server/auth/principal.h"

namespace qpruner::server {

// Immutable, so thread-safe.
class TokenTable {
 public:
  // INVALID_ARGUMENT names the entry, the field and the rule.
  static absl::StatusOr<TokenTable> Create(const internal::v1::TokenFile& file);
  // Of JSON (internal.v1.TokenFile). INVALID_ARGUMENT also for unknown fields.
  static absl::StatusOr<TokenTable> Parse(absl::string_view json);

  // The bearer of `token`. UNAUTHENTICATED: nobody's, or expired at `now`. Takes the same time
  // whatever entry matches, or none.
  absl::StatusOr<Principal> Find(absl::string_view token, absl::Time now) const;

 private:
  struct Entry {
    std::array<unsigned char, 64> sha256;  // Hexadecimal.
    Principal principal;
    absl::Time expire_time = absl::InfiniteFuture();
  };
  std::vector<Entry> entries_;
};

// A new token: "qpruner_" and 256 random bits. It is shown once and kept nowhere.
std::string MintToken(IdGenerator& random);

// What `qpruner-server new-token` is told.
struct NewTokenOptions {
  // The file that the entry is added to, or that is begun (mode 0600).
  std::string file;
  std::string id;
  std::string role;  // "client", "worker", "admin".
  std::vector<std::string> projects;
  std::vector<std::string> workers;
  std::string expires;  // "2027-01-31" (UTC) or RFC 3339. Empty: never.
};
// Mints a token, adds its entry to the file durably, and returns it. INVALID_ARGUMENT: an option is
// bad, or the file would not be one that a server accepts; nothing was written.
absl::StatusOr<std::string> AddNewToken(const NewTokenOptions& options, IdGenerator& random);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_AUTH_TOKEN_TABLE_H_
