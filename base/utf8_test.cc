#include "base/utf8.h"

#include "gtest/gtest.h"

namespace qpruner {
namespace {

TEST(Utf8, KnowsWhatIsWellFormed) {
  for (const char* text : {"", "plain", "é", "€", "😀", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsUtf8(text)) << text;
  }
  for (const char* text : {"\x80", "a\xC3", "\xC3(", "\xE2\x82", "\xF0\x9F\x98", "\xFF",
                           "\xC0\xAF",           // Overlong.
                           "\xE0\x9F\xBF",       // Overlong.
                           "\xED\xA0\x80",       // A surrogate.
                           "\xF4\x90\x80\x80"})  // Beyond U+10FFFF.
  {
    EXPECT_FALSE(IsUtf8(text)) << text;
  }
}

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("plain"), -1);
  EXPECT_EQ(FindInvalidUtf8("\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \xF4\x8F\xBF\xBF"), -1);
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2);              // Continuation alone.
  EXPECT_EQ(FindInvalidUtf8("ab\xC0\xAF"), 2);          // Overlong.
  EXPECT_EQ(FindInvalidUtf8("ab\xE0\x80\xAF"), 2);      // Overlong.
  EXPECT_EQ(FindInvalidUtf8("ab\xED\xA0\x80"), 2);      // Surrogate.
  EXPECT_EQ(FindInvalidUtf8("ab\xF4\x90\x80\x80"), 2);  // Beyond Unicode.
  EXPECT_EQ(FindInvalidUtf8("ab\xE2\x82"), 2);          // Cut off.
  EXPECT_EQ(FindInvalidUtf8("\xFF"), 0);
}

TEST(Utf8, CutsBetweenCharacters) {
  EXPECT_EQ(CutUtf8("aé", 3), "aé");
  EXPECT_EQ(CutUtf8("aéb", 3), "aé");
  EXPECT_EQ(CutUtf8("aé", 2), "a");
  EXPECT_EQ(CutUtf8("a😀", 4), "a");
  EXPECT_EQ(CutUtf8("😀", 3), "");
  EXPECT_EQ(CutUtf8("abc", 0), "");
  // What was no text stays none, and is not cut to nothing.
  EXPECT_EQ(CutUtf8("\x80\x80\x80\x80\x80\x80", 5), "\x80\x80");
}

TEST(Utf8, ReplacesWhatIsNoCharacter) {
  EXPECT_EQ(ToUtf8("a€"), "a€");
  EXPECT_EQ(ToUtf8("a\xFF"
                   "b\xE2\x82"),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_TRUE(IsUtf8(ToUtf8("\xED\xA0\x80\xC0")));
}

TEST(Utf8, EscapesWhatMovesACursorOrIsNoCharacter) {
  EXPECT_EQ(EscapeControls("a\\n {\"b\"} €😀"), "a\\n {\"b\"} €😀");
  EXPECT_EQ(EscapeControls("a\r\n\tb"), "a\\r\\n\\tb");
  EXPECT_EQ(EscapeControls(absl::string_view("\0\x1b[2K\x7f", 6)), "\\x00\\x1b[2K\\x7f");
  EXPECT_EQ(EscapeControls("\xC2\x85\xC2\xA0"), "\\u0085\xC2\xA0");  // Next line; no-break space.
  EXPECT_EQ(EscapeControls("\xE2\x80\xA8\xE2\x80\xAE"), "\\u2028\\u202e");
  EXPECT_EQ(EscapeControls("\xE2\x82"), "\\xe2\\x82");
}

}  // namespace
}  // namespace qpruner
