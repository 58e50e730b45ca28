#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/durable_file.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/formats/safetensors_writer.h"

namespace qpruner::engine {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Length(uint64_t size) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(size >> (8 * i));
  return bytes;
}

std::string File(const std::string& header, const std::string& content) {
  return Length(header.size()) + header + content;
}

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              absl::StrCat("safetensors_test_", ::getpid(), "_",
                           ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "x.safetensors";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
  // The refusal of a file of these bytes.
  std::string Refusal(const std::string& bytes) {
    Write(bytes);
    auto reader = SafetensorsReader::Open(path_);
    EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument) << reader.status();
    return std::string(reader.status().message());
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(SafetensorsTest, ReadsWhatTheReferenceWrote) {
  auto reader = SafetensorsReader::Open("data/models/stories260k/model.safetensors");
  ASSERT_TRUE(reader.ok()) << reader.status();
  const TensorView& norm = (*reader)->tensors().at("model.norm.weight");
  EXPECT_EQ(norm.dtype, DType::kF32);
  EXPECT_THAT(norm.shape, ElementsAre(64));
  EXPECT_EQ(norm.bytes.size(), 256u);
}

TEST_F(SafetensorsTest, ReadsScalarsAndEmptyTensors) {
  Write(
      File(R"({"a":{"dtype":"I16","shape":[],"data_offsets":[0,2]},)"
           R"("b":{"dtype":"F32","shape":[0,5],"data_offsets":[2,2]},"__metadata__":{"k":"v"}}  )",
           "xy"));
  auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->tensors().at("a").element_count(), 1);
  EXPECT_EQ((*reader)->tensors().at("a").bytes, "xy");
  EXPECT_EQ((*reader)->tensors().at("b").element_count(), 0);
  EXPECT_EQ((*reader)->metadata().at("k"), "v");
}

TEST_F(SafetensorsTest, RefusesABrokenFrame) {
  EXPECT_EQ(SafetensorsReader::Open(path_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(""), HasSubstr("truncated"));
  EXPECT_THAT(Refusal("1234567"), HasSubstr("truncated"));
  EXPECT_THAT(Refusal(Length(3) + "{}"), HasSubstr("the header claims 3 bytes, 2 follow"));
  EXPECT_THAT(Refusal(Length(100'000'001) + "{}"), HasSubstr("at most 100000000"));
  EXPECT_THAT(Refusal(Length(std::numeric_limits<uint64_t>::max()) + "{}"), HasSubstr("at most"));
  EXPECT_THAT(Refusal(File("", "")), HasSubstr("start with '{'"));
  EXPECT_THAT(Refusal(File(" {}", "")), HasSubstr("start with '{'"));
  EXPECT_THAT(Refusal(File("{]", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal(File("{} x", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal(File("{\"\xFF\":1}", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal(File("{}", "z")), HasSubstr("1 bytes after the last tensor"));
  EXPECT_THAT(Refusal(File("{\"a\":" + std::string(100'000, '['), "")), HasSubstr("levels deep"));
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_FALSE(SafetensorsReader::Open(path_).ok());
  std::filesystem::remove(path_);
}

TEST_F(SafetensorsTest, RefusesEachLieAboutATensor) {
  struct Case {
    const char* header;
    const char* rule;
  };
  // Four bytes follow each header.
  const Case cases[] = {
      {R"({"a":7})", R"("a": is not an object)"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", "dtype must be a string"},
      {R"({"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})",
       R"(dtype "F8_E4M3" is not supported)"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", "shape must be an array"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "non-negative integers"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "non-negative integers"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]}})",
       "more than 16 dimensions"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})",
       "shape is too large"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})",
       "non-negative integers"},
      // 2^62 elements of 4 bytes come to 0 modulo 2^64.
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})",
       "shape is too large"},
      // No bytes, but strides of 2^64.
      {R"({"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})",
       "shape is too large"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", "data_offsets must be two integers"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", "must be two integers"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", "two non-negative integers"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "end before they begin"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
       "span 4 bytes, but dtype and shape call for 8"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
       "data_offsets end at 8, the file holds 4 bytes"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})", "leave a gap"},
      {R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
       R"("b": data_offsets begin at 2 and overlap)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       "overlap"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
       "leave a gap"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "2 bytes after the last tensor"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
       R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       R"(the name "a" occurs twice)"},
      {R"({"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}})",
       R"(the name "dtype" occurs twice)"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}})", R"(unknown field "x")"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"__metadata__":{"k":1}})",
       "strings to strings"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"__metadata__":[]})",
       "__metadata__ is not an object"},
  };
  for (const Case& c : cases) EXPECT_THAT(Refusal(File(c.header, "wxyz")), HasSubstr(c.rule));
}

TEST_F(SafetensorsTest, NoPrefixOfAFileIsAFile) {
  const std::string whole =
      File(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "wxyz");
  Write(whole);
  ASSERT_TRUE(SafetensorsReader::Open(path_).ok());
  for (size_t size = 0; size < whole.size(); ++size) Refusal(whole.substr(0, size));
}

// A sparse file is as large as it likes and takes no space.
TEST_F(SafetensorsTest, ASparseFileIsNeitherReadNorCopied) {
  constexpr int64_t kTensorBytes = int64_t{1} << 38;  // 256 GiB
  constexpr int kTensors = 4;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", R"("t)", i, R"(":{"dtype":"U8","shape":[)",
                    kTensorBytes, R"(],"data_offsets":[)", i * kTensorBytes, ",",
                    (i + 1) * kTensorBytes, "]}");
  }
  header += "}";
  // Tensors that the file does not hold are refused by name, however little was written.
  EXPECT_THAT(Refusal(File(header, "")), AllOf(HasSubstr("t0"), HasSubstr("truncated")));

  const auto end = static_cast<off_t>(8 + header.size() + kTensors * uint64_t{kTensorBytes});
  if (::truncate(path_.c_str(), end) != 0) GTEST_SKIP() << "No such large files in " << path_;
  // In a process of its own, whose peak of memory no other test has raised.
  const pid_t child = ::fork();
  if (child == 0) {
    rusage before{}, after{};
    getrusage(RUSAGE_SELF, &before);
    auto reader = SafetensorsReader::Open(path_);
    getrusage(RUSAGE_SELF, &after);
    const bool views = reader.ok() && (*reader)->tensors().size() == kTensors &&
                       (*reader)->tensors().at("t3").bytes.size() == uint64_t{kTensorBytes};
    // Kilobytes: what was looked at, in pages, and the header's tree.
    ::_exit(!views ? 1 : after.ru_maxrss - before.ru_maxrss > (16 << 10) ? 2 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "1: it does not open, 2: more was read than the header";
}

TEST_F(SafetensorsTest, WritesWhatItReads) {
  const auto tensors = [](bool reversed) {
    std::vector<TensorToWrite> result = {
        {"b", DType::kU8, {3}, [] { return std::string("abc"); }},
        {"a", DType::kBF16, {1, 2}, [] { return std::string("wxyz"); }},
        {"\xC3\xA9", DType::kF32, {}, [] { return std::string("1234"); }},
        {"empty", DType::kI64, {0}, [] { return std::string(); }}};
    if (reversed) std::reverse(result.begin(), result.end());
    return result;
  };
  ASSERT_TRUE(WriteSafetensors(path_, tensors(false), {{"k", "v"}}).ok());
  auto reader = SafetensorsReader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->metadata(), (std::map<std::string, std::string>{{"k", "v"}}));
  ASSERT_EQ((*reader)->tensors().size(), 4u);
  EXPECT_EQ((*reader)->tensors().at("a").bytes, "wxyz");
  EXPECT_EQ((*reader)->tensors().at("b").bytes, "abc");
  EXPECT_EQ((*reader)->tensors().at("\xC3\xA9").bytes, "1234");
  for (const auto& [name, view] : (*reader)->tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bytes.data()) %
                  static_cast<uintptr_t>(DTypeSize(view.dtype)),
              0u)
        << name;
  }
  const std::string other = folder_ / "other.safetensors";
  ASSERT_TRUE(WriteSafetensors(other, tensors(true), {{"k", "v"}}).ok());
  EXPECT_EQ(*ReadFile(path_, 1 << 20), *ReadFile(other, 1 << 20));
}

TEST_F(SafetensorsTest, PiecesMakeTheSameFile) {
  const std::string other = folder_ / "other.safetensors";
  ASSERT_TRUE(
      WriteSafetensors(path_, {{"a", DType::kU8, {3}, [] { return std::string("abc"); }}}, {})
          .ok());
  const std::vector<TensorToWrite> pieces = {
      {"a", DType::kU8, {3}, [next = 'a']() mutable { return std::string(1, next++); }, 3}};
  ASSERT_TRUE(WriteSafetensors(other, pieces, {}).ok());
  EXPECT_EQ(*ReadFile(path_, 1 << 20), *ReadFile(other, 1 << 20));
}

TEST_F(SafetensorsTest, AFailedWriteLeavesWhatWasThere) {
  Write("before");
  const std::vector<TensorToWrite> wrong = {
      {"a", DType::kF32, {2}, [] { return std::string("1234"); }}};
  absl::Status status = WriteSafetensors(path_, wrong, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4 bytes, its dtype and shape call for 8"));
  const std::vector<TensorToWrite> twice = {
      {"a", DType::kU8, {1}, [] { return std::string("1"); }},
      {"a", DType::kU8, {1}, [] { return std::string("1"); }}};
  EXPECT_EQ(WriteSafetensors(path_, twice, {}).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(*ReadFile(path_, 100), "before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

}  // namespace
}  // namespace qpruner::engine
