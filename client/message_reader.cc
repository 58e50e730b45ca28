#include "client/message_reader.h"

#include <google/protobuf/descriptor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/utf8.h"

namespace qpruner {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

using RefuseField = std::function<std::string(const FieldDescriptor&)>;

int LineOf(const YAML::Node& node) { return node.Mark().is_null() ? 0 : node.Mark().line + 1; }

// yaml-cpp tags a quoted scalar "!" and a plain one "?".
bool IsQuoted(const YAML::Node& node) { return node.Tag() == "!"; }

std::string Join(const std::string& path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

std::string Shown(absl::string_view text) {
  constexpr size_t kLongest = 40;
  if (text.size() > kLongest) return absl::StrCat("\"", text.substr(0, kLongest), "…\"");
  return absl::StrCat("\"", text, "\"");
}

// What a node is, for people.
std::string Kind(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      return "empty";
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a mapping";
    case YAML::NodeType::Scalar:
      break;
  }
  return IsQuoted(node) ? absl::StrCat("the text ", Shown(node.Scalar())) : Shown(node.Scalar());
}

// JSON writes a character beyond 16 bits as two escapes, which YAML does not know. A lone half is
// left for the parser to refuse.
std::string JoinSurrogates(absl::string_view json) {
  const auto unit = [&](size_t at, uint32_t* value) {
    if (at + 6 > json.size() || json[at] != '\\' || json[at + 1] != 'u') return false;
    const std::string digits(json.substr(at + 2, 4));
    if (!std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) return false;
    *value = static_cast<uint32_t>(std::stoul(digits, nullptr, 16));
    return true;
  };
  std::string out;
  out.reserve(json.size());
  for (size_t i = 0; i < json.size();) {
    uint32_t high = 0, low = 0;
    if (json[i] != '\\') {
      out.push_back(json[i++]);
    } else if (unit(i, &high) && high >= 0xD800 && high < 0xDC00 && unit(i + 6, &low) &&
               low >= 0xDC00 && low < 0xE000) {
      const uint32_t rune = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
      out.push_back(static_cast<char>(0xF0 | rune >> 18));
      out.push_back(static_cast<char>(0x80 | (rune >> 12 & 0x3F)));
      out.push_back(static_cast<char>(0x80 | (rune >> 6 & 0x3F)));
      out.push_back(static_cast<char>(0x80 | (rune & 0x3F)));
      i += 12;
    } else {
      absl::StrAppend(&out, json.substr(i, 2));
      i += 2;
    }
  }
  return out;
}

const FieldDescriptor* FindField(const Descriptor& type, const std::string& name) {
  if (const FieldDescriptor* field = type.FindFieldByName(name)) return field;
  for (int i = 0; i < type.field_count(); ++i) {
    if (type.field(i)->json_name() == name) return type.field(i);
  }
  return nullptr;
}

// Paths below `type` that end in a field called `name`.
void FindPaths(const Descriptor& type, const std::string& name, const RefuseField& refuse,
               const std::string& path, int depth, std::vector<std::string>& found) {
  if (depth == 0) return;
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (refuse && !refuse(field).empty()) continue;
    const std::string here = Join(path, field.name());
    if (field.name() == name) found.push_back(here);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_map()) {
      FindPaths(*field.message_type(), name, refuse, here, depth - 1, found);
    }
  }
}

class Reader {
 public:
  Reader(const Descriptor& root, const RefuseField& refuse) : root_(root), refuse_(refuse) {}

  ReadResult Take() && { return std::move(result_); }

  void Mapping(const YAML::Node& node, const std::string& path, int line, int depth,
               Message& message) {
    if (!Enter(node, path, line, depth)) return;
    if (node.IsNull()) return;  // A heading whose lines are all commented out.
    if (!node.IsMap()) {
      return Complain(line, path, absl::StrCat("must be a mapping of fields, is ", Kind(node)));
    }
    std::set<const FieldDescriptor*> seen;
    std::map<const google::protobuf::OneofDescriptor*, const FieldDescriptor*> chosen;
    for (const auto& entry : node) {
      const int key_line = LineOf(entry.first);
      if (!entry.first.IsScalar()) {
        Complain(key_line, path,
                 absl::StrCat("a field's name must be text, is ", Kind(entry.first)));
        continue;
      }
      const std::string& name = entry.first.Scalar();
      const FieldDescriptor* field = Lookup(*message.GetDescriptor(), name, path, key_line);
      if (field == nullptr) continue;
      const std::string here = Join(path, field->name());
      if (!seen.insert(field).second) {
        Complain(key_line, here, "is given twice");
        continue;
      }
      if (const auto* oneof = field->real_containing_oneof()) {
        auto [other, first] = chosen.emplace(oneof, field);
        if (!first) {
          Complain(key_line, here,
                   absl::StrCat("cannot be set together with ", other->second->name(),
                                ": give one of them"));
          continue;
        }
      }
      Field(*field, entry.second, here, key_line, depth + 1, message);
    }
  }

  // Null if it is unknown or refused, which has then been said.
  const FieldDescriptor* Lookup(const Descriptor& type, const std::string& name,
                                const std::string& path, int line) {
    const FieldDescriptor* field = FindField(type, name);
    if (field != nullptr) {
      const std::string reason = refuse_ ? refuse_(*field) : std::string();
      if (reason.empty()) return field;
      Complain(line, Join(path, field->name()), reason);
      return nullptr;
    }
    std::vector<std::string> known;
    for (int i = 0; i < type.field_count(); ++i) {
      if (!refuse_ || refuse_(*type.field(i)).empty()) known.push_back(type.field(i)->name());
    }
    std::string description = "unknown field";
    std::vector<std::string> elsewhere;
    FindPaths(root_, name, refuse_, "", 5, elsewhere);
    if (const std::string closest = ClosestName(name, known); !closest.empty()) {
      absl::StrAppend(&description, "; did you mean \"", closest, "\"?");
    } else if (!elsewhere.empty()) {
      absl::StrAppend(&description, "; it belongs at ", absl::StrJoin(elsewhere, " or "));
    } else {
      absl::StrAppend(&description, "; known here: ", absl::StrJoin(known, ", "));
    }
    Complain(line, Join(path, Printable(name)), description);
    return nullptr;
  }

  void Field(const FieldDescriptor& field, const YAML::Node& node, const std::string& path,
             int line, int depth, Message& message) {
    result_.lines[path] = line;
    const Reflection& reflection = *message.GetReflection();
    if (field.is_map()) return Map(field, node, path, line, depth, message);
    if (field.is_repeated()) {
      if (!Enter(node, path, line, depth)) return;
      if (!node.IsSequence()) {
        return Complain(line, path,
                        absl::StrCat("must be a list, such as [a, b]; is ", Kind(node)));
      }
      reflection.ClearField(&message, &field);
      int index = 0;
      for (const auto& item : node) {
        const std::string here = absl::StrCat(path, "[", index++, "]");
        const int item_line = LineOf(item) > 0 ? LineOf(item) : line;
        if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
          Mapping(item, here, item_line, depth + 1, *reflection.AddMessage(&message, &field));
        } else {
          Scalar(field, item, here, item_line, depth + 1, message);
        }
      }
      return;
    }
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return Mapping(node, path, line, depth, *reflection.MutableMessage(&message, &field));
    }
    Scalar(field, node, path, line, depth, message);
  }

  void Complain(int line, const std::string& path, std::string description) {
    result_.problems.push_back({line, path, std::move(description)});
  }

 private:
  // Counts a node and bounds the depth.
  bool Enter(const YAML::Node&, const std::string& path, int line, int depth) {
    if (gave_up_) return false;
    if (depth > kMaxMessageDepth) {
      Complain(
          line, path,
          absl::StrCat("is nested too deeply: at most ", kMaxMessageDepth, " levels are read"));
      return false;
    }
    if (++nodes_ > kMaxMessageNodes) {
      gave_up_ = true;
      Complain(line, path,
               absl::StrCat("there is too much here: at most ", kMaxMessageNodes,
                            " values are read, aliases counted as often as they are used"));
      return false;
    }
    return true;
  }

  static std::string Printable(const std::string& name) {
    return IsUtf8(name) && name.size() <= 60 ? name : absl::CHexEscape(name.substr(0, 60));
  }

  void Map(const FieldDescriptor& field, const YAML::Node& node, const std::string& path, int line,
           int depth, Message& message) {
    if (!Enter(node, path, line, depth)) return;
    if (!node.IsMap()) {
      if (node.IsNull()) return;
      return Complain(line, path, absl::StrCat("must be a mapping, is ", Kind(node)));
    }
    message.GetReflection()->ClearField(&message, &field);
    std::set<std::string> keys;
    for (const auto& entry : node) {
      const int key_line = LineOf(entry.first);
      if (!entry.first.IsScalar()) {
        Complain(key_line, path, absl::StrCat("a key must be text, is ", Kind(entry.first)));
        continue;
      }
      const std::string here = Join(path, Printable(entry.first.Scalar()));
      if (!keys.insert(entry.first.Scalar()).second) {
        Complain(key_line, here, "is given twice");
        continue;
      }
      result_.lines[here] = key_line;
      Message& pair = *message.GetReflection()->AddMessage(&message, &field);
      const size_t before = result_.problems.size();
      Scalar(*field.message_type()->map_key(), entry.first, here, key_line, depth + 1, pair);
      const FieldDescriptor& value = *field.message_type()->map_value();
      if (value.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        Mapping(entry.second, here, key_line, depth + 1,
                *pair.GetReflection()->MutableMessage(&pair, &value));
      } else {
        Scalar(value, entry.second, here, key_line, depth + 1, pair);
      }
      if (result_.problems.size() != before) {
        message.GetReflection()->RemoveLast(&message, &field);
      }
    }
  }

  // Whole decimal digits: no "0x10", no "010" (which some YAML reads as 8), no "1e3".
  template <typename T>
  void Integer(const FieldDescriptor& field, const YAML::Node& node, const std::string& path,
               int line, absl::string_view type, Message& message,
               void (Reflection::*set)(Message*, const FieldDescriptor*, T) const,
               void (Reflection::*add)(Message*, const FieldDescriptor*, T) const) {
    const std::string& text = node.Scalar();
    // Protobuf's JSON writes 64-bit numbers in quotes, because JavaScript's numbers have 53 bits.
    if (IsQuoted(node) && sizeof(T) < 8) {
      return Complain(
          line, path,
          absl::StrCat("must be a whole number, is ", Kind(node), ": write it without quotes"));
    }
    absl::string_view digits = text;
    const bool negative = absl::ConsumePrefix(&digits, "-");
    const bool plain =
        !digits.empty() && std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit);
    if (!plain) {
      return Complain(line, path, absl::StrCat("must be a whole number, is ", Kind(node)));
    }
    if (digits.size() > 1 && digits[0] == '0') {
      return Complain(line, path, absl::StrCat("must not begin with 0, is ", text));
    }
    T value = 0;
    if ((negative && !std::is_signed_v<T>) || !absl::SimpleAtoi(text, &value)) {
      return Complain(line, path, absl::StrCat("must be ", type, ", is ", text));
    }
    (message.GetReflection()->*(field.is_repeated() ? add : set))(&message, &field, value);
  }

  void Number(const FieldDescriptor& field, const YAML::Node& node, const std::string& path,
              int line, Message& message) {
    const std::string& text = node.Scalar();
    if (IsQuoted(node)) {
      return Complain(
          line, path,
          absl::StrCat("must be a number, is ", Kind(node), ": write it without quotes"));
    }
    double value = 0;
    const bool shaped = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
      return absl::ascii_isdigit(c) || absl::StrContains("+-.eE", std::string(1, c));
    });
    if (!shaped || !absl::SimpleAtod(text, &value)) {
      return Complain(line, path, absl::StrCat("must be a number, is ", Kind(node)));
    }
    if (!std::isfinite(value)) {
      return Complain(line, path, absl::StrCat("must be a finite number, is ", text));
    }
    const Reflection& reflection = *message.GetReflection();
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_FLOAT) {
      field.is_repeated() ? reflection.AddFloat(&message, &field, static_cast<float>(value))
                          : reflection.SetFloat(&message, &field, static_cast<float>(value));
    } else {
      field.is_repeated() ? reflection.AddDouble(&message, &field, value)
                          : reflection.SetDouble(&message, &field, value);
    }
  }

  void Enum(const FieldDescriptor& field, const YAML::Node& node, const std::string& path, int line,
            Message& message) {
    const EnumDescriptor& type = *field.enum_type();
    std::vector<std::string> names;
    const EnumValueDescriptor* match = nullptr;
    for (int i = 0; i < type.value_count(); ++i) {
      // The first value of an enum says "not set", which leaving the field out says too.
      if (type.value(i)->number() == 0 && absl::EndsWith(type.value(i)->name(), "_UNSPECIFIED")) {
        continue;
      }
      names.push_back(type.value(i)->name());
      if (absl::EqualsIgnoreCase(type.value(i)->name(), node.Scalar())) match = type.value(i);
    }
    if (match == nullptr) {
      std::string description = absl::StrCat("must be one of ", absl::StrJoin(names, ", "), "; is ",
                                             Shown(Printable(node.Scalar())));
      const std::string closest = ClosestName(absl::AsciiStrToUpper(node.Scalar()), names);
      if (!closest.empty()) absl::StrAppend(&description, "; did you mean ", closest, "?");
      return Complain(line, path, description);
    }
    const Reflection& reflection = *message.GetReflection();
    field.is_repeated() ? reflection.AddEnum(&message, &field, match)
                        : reflection.SetEnum(&message, &field, match);
  }

  void Text(const FieldDescriptor& field, const YAML::Node& node, const std::string& path, int line,
            Message& message) {
    const std::string& text = node.Scalar();
    if (!IsUtf8(text) || absl::StrContains(text, std::string(1, '\0'))) {
      return Complain(line, path, "must be UTF-8 text");
    }
    const Reflection& reflection = *message.GetReflection();
    field.is_repeated() ? reflection.AddString(&message, &field, text)
                        : reflection.SetString(&message, &field, text);
  }

  void Scalar(const FieldDescriptor& field, const YAML::Node& node, const std::string& path,
              int line, int depth, Message& message) {
    if (!Enter(node, path, line, depth)) return;
    if (!node.IsScalar()) {
      const char* wanted = "a single value";
      switch (field.cpp_type()) {
        case FieldDescriptor::CPPTYPE_STRING:
          wanted = "text";
          break;
        case FieldDescriptor::CPPTYPE_ENUM:
          wanted = "a name";
          break;
        case FieldDescriptor::CPPTYPE_BOOL:
          wanted = "true or false";
          break;
        default:
          wanted = "a number";
      }
      return Complain(
          line, path,
          node.IsNull() ? absl::StrCat("has no value; it must be ", wanted, ", or the line must go")
                        : absl::StrCat("must be ", wanted, ", is ", Kind(node)));
    }
    const Reflection& reflection = *message.GetReflection();
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        return Integer<int32_t>(field, node, path, line, "a 32-bit whole number", message,
                                &Reflection::SetInt32, &Reflection::AddInt32);
      case FieldDescriptor::CPPTYPE_INT64:
        return Integer<int64_t>(field, node, path, line, "a 64-bit whole number", message,
                                &Reflection::SetInt64, &Reflection::AddInt64);
      case FieldDescriptor::CPPTYPE_UINT32:
        return Integer<uint32_t>(field, node, path, line, "a 32-bit whole number from 0 on",
                                 message, &Reflection::SetUInt32, &Reflection::AddUInt32);
      case FieldDescriptor::CPPTYPE_UINT64:
        return Integer<uint64_t>(field, node, path, line, "a 64-bit whole number from 0 on",
                                 message, &Reflection::SetUInt64, &Reflection::AddUInt64);
      case FieldDescriptor::CPPTYPE_FLOAT:
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return Number(field, node, path, line, message);
      case FieldDescriptor::CPPTYPE_ENUM:
        return Enum(field, node, path, line, message);
      case FieldDescriptor::CPPTYPE_STRING:
        return Text(field, node, path, line, message);
      case FieldDescriptor::CPPTYPE_BOOL: {
        const bool value = node.Scalar() == "true";
        if (IsQuoted(node) || (!value && node.Scalar() != "false")) {
          return Complain(line, path, absl::StrCat("must be true or false, is ", Kind(node)));
        }
        field.is_repeated() ? reflection.AddBool(&message, &field, value)
                            : reflection.SetBool(&message, &field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_MESSAGE:
        break;  // The callers send these to Mapping.
    }
  }

  const Descriptor& root_;
  const RefuseField& refuse_;
  ReadResult result_;
  int nodes_ = 0;
  bool gave_up_ = false;
};

// Hears of a document without making anything of it.
class DeafHandler final : public YAML::EventHandler {
 public:
  using Mark = YAML::Mark;
  using Style = YAML::EmitterStyle::value;
  void OnDocumentStart(const Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const Mark&, YAML::anchor_t) override {}
  void OnAlias(const Mark&, YAML::anchor_t) override {}
  void OnScalar(const Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const Mark&, const std::string&, YAML::anchor_t, Style) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const Mark&, const std::string&, YAML::anchor_t, Style) override {}
  void OnMapEnd() override {}
};

}  // namespace

std::string ClosestName(absl::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    if (word.size() > 64) break;
    // Edit distance with swaps of neighbours (optimal string alignment).
    const size_t n = word.size(), m = candidate.size();
    std::vector<std::vector<size_t>> d(n + 1, std::vector<size_t>(m + 1));
    for (size_t i = 0; i <= n; ++i) d[i][0] = i;
    for (size_t j = 0; j <= m; ++j) d[0][j] = j;
    for (size_t i = 1; i <= n; ++i) {
      for (size_t j = 1; j <= m; ++j) {
        const size_t change = word[i - 1] == candidate[j - 1] ? 0 : 1;
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + change});
        if (i > 1 && j > 1 && word[i - 1] == candidate[j - 2] && word[i - 2] == candidate[j - 1]) {
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
      }
    }
    if (d[n][m] < best_distance) {
      best_distance = d[n][m];
      best = candidate;
    }
  }
  return best;
}

absl::StatusOr<YAML::Node> ParseYaml(absl::string_view content) {
  if (content.size() > kMaxMessageFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "too large: ", content.size(), " bytes, at most ", kMaxMessageFileBytes, " are read"));
  }
  const bool json = absl::StartsWith(absl::StripLeadingAsciiWhitespace(content), "{");
  try {
    const std::string text = json ? JoinSurrogates(content) : std::string(content);
    // Not YAML::LoadAll: behind what is left over after a document the parser may find empty ones
    // for ever.
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    DeafHandler nobody;
    if (!parser.HandleNextDocument(nobody)) return absl::InvalidArgumentError("it is empty");
    if (parser.HandleNextDocument(nobody)) {
      return absl::InvalidArgumentError("holds more than one document; one is expected");
    }
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    if (error.mark.is_null()) return absl::InvalidArgumentError(error.msg);
    return absl::InvalidArgumentError(absl::StrCat("line ", error.mark.line + 1, ", column ",
                                                   error.mark.column + 1, ": ", error.msg));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

ReadResult ReadMessage(const YAML::Node& node, Message& message, const RefuseField& refuse) {
  Reader reader(*message.GetDescriptor(), refuse);
  try {
    reader.Mapping(node, "", LineOf(node), 0, message);
  } catch (const std::exception& error) {
    reader.Complain(0, "", error.what());
  }
  return std::move(reader).Take();
}

ReadResult ReadField(absl::string_view path, const YAML::Node& value, Message& message,
                     const RefuseField& refuse) {
  Reader reader(*message.GetDescriptor(), refuse);
  const std::vector<std::string> parts = absl::StrSplit(path, '.');
  Message* parent = &message;
  std::string here;
  try {
    for (size_t i = 0; i < parts.size(); ++i) {
      const FieldDescriptor* field = reader.Lookup(*parent->GetDescriptor(), parts[i], here, 0);
      if (field == nullptr) break;
      here = Join(here, field->name());
      if (i + 1 == parts.size()) {
        reader.Field(*field, value, here, 0, static_cast<int>(i), *parent);
        break;
      }
      const Reflection& reflection = *parent->GetReflection();
      if (field->is_map()) {
        // One key of the map: the rest of the path, dots and all.
        const std::vector<std::string> rest(parts.begin() + i + 1, parts.end());
        YAML::Node all(YAML::NodeType::Map);
        for (int j = 0; j < reflection.FieldSize(*parent, field); ++j) {
          const Message& pair = reflection.GetRepeatedMessage(*parent, field, j);
          const auto text = [&](int number) {
            return pair.GetReflection()->GetString(pair,
                                                   pair.GetDescriptor()->FindFieldByNumber(number));
          };
          all[text(1)] = text(2);
        }
        all[absl::StrJoin(rest, ".")] = value;
        reader.Field(*field, all, here, 0, static_cast<int>(i), *parent);
        break;
      }
      if (field->is_repeated() || field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
        reader.Complain(0, here, absl::StrCat("has no field \"", parts[i + 1], "\" in it"));
        break;
      }
      parent = reflection.MutableMessage(parent, field);
    }
  } catch (const std::exception& error) {
    reader.Complain(0, here, error.what());
  }
  return std::move(reader).Take();
}

}  // namespace qpruner
