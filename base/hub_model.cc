#include "base/hub_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/utf8.h"

namespace qpruner {
namespace {

bool IsName(absl::string_view text, absl::string_view more) {
  return !text.empty() && text.size() <= 128 && text[0] != '.' && text[0] != '-' &&
         !absl::StrContains(text, "..") && std::all_of(text.begin(), text.end(), [&](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-' || absl::StrContains(more, std::string(1, c));
         });
}

}  // namespace

absl::StatusOr<HubModel> HubModel::Parse(absl::string_view uri) {
  absl::string_view rest = uri;
  if (absl::ConsumePrefix(&rest, "hf://")) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(rest, absl::MaxSplits('@', 1));
    const std::vector<absl::string_view> names = absl::StrSplit(parts.first, '/');
    const bool has_revision = parts.first.size() != rest.size();
    if (names.size() == 2 && IsName(names[0], "") && IsName(names[1], "") &&
        (!has_revision || IsName(parts.second, "/"))) {
      return HubModel{std::string(parts.first),
                      has_revision ? std::string(parts.second) : std::string("main")};
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("must be hf://organization/name@revision, is \"", CutUtf8(uri, 200), "\""));
}

}  // namespace qpruner
