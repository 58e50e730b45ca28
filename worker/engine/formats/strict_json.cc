#include "worker/engine/formats/strict_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace qpruner::engine {
namespace {

using Json = nlohmann::json;

// A first pass over the text that builds nothing but the sets of keys.
class StrictnessCheck : public nlohmann::json_sax<Json> {
 public:
  explicit StrictnessCheck(const StrictJsonLimits& limits) : limits_(limits) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return Enter();
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (!keys_.back().insert(name).second) {
      return Fail(absl::StrCat("the name ", QuotedForMessage(name), " occurs twice"));
    }
    if (keys_.back().size() > limits_.max_keys) {
      return Fail(absl::StrCat("an object has more than ", limits_.max_keys, " names"));
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    return Fail(absl::StrCat("not valid JSON at byte ", position));
  }

  const std::string& error() const { return error_; }

 private:
  bool Enter() {
    if (++depth_ <= limits_.max_depth) return true;
    return Fail(absl::StrCat("nests more than ", limits_.max_depth, " levels deep"));
  }
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  const StrictJsonLimits limits_;
  std::vector<absl::flat_hash_set<std::string>> keys_;
  int depth_ = 0;
  std::string error_;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text,
                                               const StrictJsonLimits& limits) {
  StrictnessCheck check(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &check)) {
    return absl::InvalidArgumentError(check.error());
  }
  return Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

absl::StatusOr<nlohmann::json> ParseStrictJsonObject(absl::string_view text,
                                                     const StrictJsonLimits& limits) {
  ASSIGN_OR_RETURN(Json json, ParseStrictJson(text, limits));
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return json;
}

std::string QuotedForMessage(absl::string_view text) {
  constexpr size_t kMaxShown = 120;
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "..." : "", "\"");
}

}  // namespace qpruner::engine
