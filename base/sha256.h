// SHA-256, the name of every artifact.
#ifndef QPRUNER_BASE_SHA256_H_
#define QPRUNER_BASE_SHA256_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// Hashes a stream of bytes. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(absl::string_view data);
  // 64 lower-case hexadecimal digits. Call once, last.
  std::string HexDigest();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(absl::string_view data);

// Hash of a file's content. NOT_FOUND or another code of the failed system call.
absl::StatusOr<std::string> Sha256OfFile(const std::string& path);

// True for exactly 64 lower-case hexadecimal digits: what may become part of a path.
bool IsSha256Hex(absl::string_view text);

}  // namespace qpruner

#endif  // QPRUNER_BASE_SHA256_H_
