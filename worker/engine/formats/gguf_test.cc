#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "worker/engine/formats/ggml_dequantize.h"
#include "worker/engine/formats/ggml_quantize.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/formats/half_float.h"
#include "worker/engine/formats/safetensors_reader.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Written by llama.cpp's Python package: tests/compat/gguf_types_golden.py.
constexpr char kTypes[] = "tests/golden/gguf/types.gguf";
constexpr char kTypeValues[] = "tests/golden/gguf/types.safetensors";

template <typename T>
std::string Bytes(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

std::string Text(const std::string& text) { return Bytes<uint64_t>(text.size()) + text; }

std::string Header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
  return "GGUF" + Bytes(version) + Bytes(tensors) + Bytes(keys);
}

std::string Key(const std::string& name, GgufValueType type, const std::string& value) {
  return Text(name) + Bytes(static_cast<uint32_t>(type)) + value;
}

std::string Entry(const std::string& name, const std::vector<uint64_t>& dimensions, uint32_t type,
                  uint64_t offset) {
  std::string bytes = Text(name) + Bytes(static_cast<uint32_t>(dimensions.size()));
  for (uint64_t size : dimensions) bytes += Bytes(size);
  return bytes + Bytes(type) + Bytes(offset);
}

// The header, padded, and `size` bytes of tensors.
std::string WithData(std::string header, size_t size) {
  while (header.size() % 32 != 0) header.push_back('\0');
  return header + std::string(size, '\x11');
}

class GgufTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            absl::StrCat("gguf_test_", ::getpid(), "_",
                         ::testing::UnitTest::GetInstance()->current_test_info()->name());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  absl::StatusOr<std::unique_ptr<const GgufReader>> Open(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary) << bytes;
    return GgufReader::Open(path_);
  }
  // The refusal of a file of these bytes.
  std::string Refusal(const std::string& bytes) {
    auto reader = Open(bytes);
    EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument) << reader.status();
    return std::string(reader.status().message());
  }

  std::string path_;
};

TEST_F(GgufTest, ReadsWhatTheReferenceWrote) {
  auto reader = GgufReader::Open(kTypes);
  ASSERT_TRUE(reader.ok()) << reader.status();
  const GgufMetadata& metadata = (*reader)->metadata();
  EXPECT_EQ(*metadata.String("general.architecture", {}), "llama");
  EXPECT_EQ(*metadata.Integer("test.uint8", {}, 0, 255), 255);
  EXPECT_EQ(*metadata.Integer("test.int8", {}, -128, 0), -128);
  EXPECT_EQ(*metadata.Integer("test.uint16", {}, 0, 65535), 65535);
  EXPECT_EQ(*metadata.Integer("test.int16", {}, -32768, 0), -32768);
  EXPECT_EQ(*metadata.Integer("test.uint32", {}, 0, UINT32_MAX), UINT32_MAX);
  EXPECT_EQ(*metadata.Integer("test.int32", {}, INT32_MIN, 0), INT32_MIN);
  EXPECT_EQ(*metadata.Integer("test.int64", {}, INT64_MIN, 0), INT64_MIN);
  EXPECT_FALSE(metadata.Integer("test.uint64", {}, 0, INT64_MAX).ok());  // Beyond int64.
  EXPECT_EQ(*metadata.Number("test.float32", {}, 0, 1), 1e-5);           // As people wrote it.
  EXPECT_EQ(*metadata.Number("test.float64", {}, 0, 1), 1e-5);
  EXPECT_EQ(*metadata.Boolean("test.bool", {}), true);
  EXPECT_EQ(*metadata.String("test.string", {}), "\xC3\xA9 \xE2\x96\x81");
  EXPECT_THAT(*metadata.Strings("test.strings"), ElementsAre("a", "", "\xC3\xBC"));
  EXPECT_THAT(*metadata.Integers("test.integers"), ElementsAre(3, -1, 2));
  EXPECT_THAT(*metadata.Floats("test.floats"), ElementsAre(0.5f, -2.0f));
  EXPECT_THAT(*metadata.IntegerPerBlock("test.integers", 3, -1, 3), ElementsAre(3, -1, 2));
  EXPECT_THAT(*metadata.IntegerPerBlock("test.uint8", 2, 0, 255), ElementsAre(255, 255));

  EXPECT_EQ((*reader)->tensors().size(), 11u);
  const GgufTensor& tensor = (*reader)->tensors().at("Q4_K");
  EXPECT_EQ(tensor.type, GgmlType::kQ4_K);
  EXPECT_THAT(tensor.shape, ElementsAre(2, 1024));
  EXPECT_EQ(tensor.bytes.size(), 8u * 144);
}

TEST_F(GgufTest, DequantizesBitForBitAsTheReference) {
  auto reader = GgufReader::Open(kTypes);
  auto golden = SafetensorsReader::Open(kTypeValues);
  ASSERT_TRUE(reader.ok() && golden.ok()) << reader.status() << golden.status();
  for (const auto& [name, tensor] : (*reader)->tensors()) {
    const TensorView& expected = (*golden)->tensors().at(name + ".values");
    ASSERT_EQ(expected.element_count(), tensor.element_count()) << name;
    std::vector<float> values(static_cast<size_t>(tensor.element_count()));
    DequantizeGgml(tensor.type, tensor.bytes.data(), tensor.element_count(), values.data());
    EXPECT_EQ(std::memcmp(values.data(), expected.bytes.data(), expected.bytes.size()), 0) << name;
  }
}

TEST_F(GgufTest, QuantizesBitForBitAsTheReference) {
  int compared = 0;
  for (const char* path : {kTypeValues, "tests/golden/gguf/k_quants.safetensors"}) {
    auto golden = SafetensorsReader::Open(path);
    ASSERT_TRUE(golden.ok()) << golden.status();
    const TensorView& weights = (*golden)->tensors().at("weights");
    std::vector<float> values(static_cast<size_t>(weights.element_count()));
    std::memcpy(values.data(), weights.bytes.data(), weights.bytes.size());
    for (GgmlType type :
         {GgmlType::kF16, GgmlType::kBF16, GgmlType::kQ8_0, GgmlType::kQ4_0, GgmlType::kQ4_1,
          GgmlType::kQ5_0, GgmlType::kQ5_1, GgmlType::kQ4_K, GgmlType::kQ6_K}) {
      const auto expected = (*golden)->tensors().find(absl::StrCat(InfoOf(type).name, ".encoded"));
      if (expected == (*golden)->tensors().end()) continue;
      EXPECT_TRUE(CanQuantizeGgml(type));
      std::string encoded(expected->second.bytes.size(), '\0');
      QuantizeGgml(type, values.data(), weights.element_count(), encoded.data());
      int different = 0;
      for (size_t i = 0; i < encoded.size(); ++i) {
        different += encoded[i] != expected->second.bytes[i] ? 1 : 0;
      }
      EXPECT_EQ(different, 0) << InfoOf(type).name << " of " << encoded.size() << " bytes";
      ++compared;
    }
  }
  EXPECT_EQ(compared, 9);
}

// Every float16, and what lies half-way between two of them.
TEST_F(GgufTest, RoundsToHalfPrecisionEvenly) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const float value = FloatFromF16(static_cast<uint16_t>(bits));
    EXPECT_EQ(F16FromFloat(value), bits);
    EXPECT_EQ(F16FromFloat(-value), bits | 0x8000u);
    // The value after the largest would be 65536.
    const float next = bits == 0x7BFF ? 65536.0f : FloatFromF16(static_cast<uint16_t>(bits + 1));
    const float middle = (value + next) / 2;
    EXPECT_EQ(F16FromFloat(middle), bits + (bits & 1)) << bits;
    EXPECT_EQ(F16FromFloat(std::nextafter(middle, 0.0f)), bits) << bits;
    EXPECT_EQ(F16FromFloat(std::nextafter(middle, 1e9f)), bits + 1) << bits;
  }
  EXPECT_TRUE(std::isnan(FloatFromF16(F16FromFloat(std::nanf("")))));
  EXPECT_EQ(F16FromFloat(std::numeric_limits<float>::infinity()), 0x7C00);
}

TEST_F(GgufTest, KeepsInfiniteAndNanScales) {
  std::string block(34, '\x01');
  float values[32];
  block[0] = '\0', block[1] = '\x7C';
  DequantizeGgml(GgmlType::kQ8_0, block.data(), 32, values);
  EXPECT_EQ(values[0], std::numeric_limits<float>::infinity());
  block[0] = '\x01';
  DequantizeGgml(GgmlType::kQ8_0, block.data(), 32, values);
  EXPECT_TRUE(std::isnan(values[31]));
}

TEST_F(GgufTest, MetadataErrorsNameTheKeyAndTheRule) {
  auto reader = GgufReader::Open(kTypes);
  ASSERT_TRUE(reader.ok());
  const GgufMetadata& metadata = (*reader)->metadata();
  const auto message = [](const auto& result) { return std::string(result.status().message()); };
  EXPECT_EQ(message(metadata.Integer("test.none", {}, 0, 1)), "key test.none is missing");
  EXPECT_EQ(*metadata.Integer("test.none", 7, 0, 1), 7);
  EXPECT_EQ(message(metadata.Integer("test.uint8", {}, 0, 1)),
            "key test.uint8 must be an integer from 0 to 1, is 255");
  EXPECT_THAT(message(metadata.Integer("test.string", {}, 0, 1)), HasSubstr("must be an integer"));
  EXPECT_THAT(message(metadata.Number("test.uint8", {}, 0, 1)),
              HasSubstr("key test.uint8 must be a floating-point number above 0"));
  EXPECT_THAT(message(metadata.Boolean("test.uint8", {})), HasSubstr("must be true or false"));
  EXPECT_THAT(message(metadata.String("test.strings", {})),
              HasSubstr("must be a string, is an array of 3 STRING"));
  EXPECT_THAT(message(metadata.Strings("test.integers")), HasSubstr("must be an array of strings"));
  EXPECT_THAT(message(metadata.Integers("test.floats")), HasSubstr("must be an array of integers"));
  EXPECT_THAT(message(metadata.Integers("test.strings")), HasSubstr("an array of integers"));
  EXPECT_THAT(message(metadata.Floats("test.integers")), HasSubstr("must be an array of FLOAT32"));
  EXPECT_THAT(message(metadata.IntegerPerBlock("test.integers", 2, -1, 3)),
              HasSubstr("one value for each of the 2 blocks"));
  EXPECT_THAT(message(metadata.IntegerPerBlock("test.integers", 3, 0, 3)), HasSubstr("[1] is -1"));
}

TEST_F(GgufTest, ChecksUtf8WhereTextIsAskedFor) {
  auto reader = Open(Header(0, 2) + Key("bad", GgufValueType::kString, Text("\xC0\x80")) +
                     Key("list", GgufValueType::kArray,
                         Bytes(uint32_t{8}) + Bytes(uint64_t{1}) + Text("\xED\xA0\x80")));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_FALSE((*reader)->metadata().String("bad", {}).ok());
  EXPECT_FALSE((*reader)->metadata().Strings("list").ok());
}

TEST_F(GgufTest, OpensTheSmallestFiles) {
  EXPECT_TRUE(Open(Header(0, 0)).ok());
  EXPECT_TRUE(Open(Header(0, 0, 2)).ok());
  EXPECT_EQ(GgufReader::Open(path_ + ".none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufReader::Open("data").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GgufTest, RefusesEveryLieOfTheHeader) {
  EXPECT_THAT(Refusal(""), HasSubstr("the magic number needs 4 bytes"));
  EXPECT_THAT(Refusal("GGML" + Bytes(uint32_t{3})), HasSubstr("does not begin with \"GGUF\""));
  EXPECT_THAT(Refusal(Header(0, 0, 1)), HasSubstr("its version is 1; supported: 2 and 3"));
  EXPECT_THAT(Refusal(Header(0, 0, 3u << 24)), HasSubstr("big-endian"));
  EXPECT_THAT(Refusal(Header(0, 0).substr(0, 20)), HasSubstr("the number of keys needs 8 bytes"));
  EXPECT_THAT(Refusal(Header(UINT64_MAX, 0)), HasSubstr("tensors; at most"));
  EXPECT_THAT(Refusal(Header(0, UINT64_MAX)), HasSubstr("keys; at most"));
  EXPECT_THAT(Refusal(Header(0, 1)), HasSubstr("truncated: the name of key 0"));
}

TEST_F(GgufTest, RefusesEveryLieOfAKey) {
  const std::string one = Header(0, 1);
  EXPECT_THAT(Refusal(one + Bytes(UINT64_MAX)), HasSubstr("the name of key 0 claims"));
  EXPECT_THAT(Refusal(one + Text("")), HasSubstr("is empty"));
  EXPECT_THAT(Refusal(one + Key("k", static_cast<GgufValueType>(13), "")),
              HasSubstr("key \"k\" has the unknown type 13"));
  EXPECT_THAT(Refusal(one + Key("k", GgufValueType::kBool, "\x02")), HasSubstr("must be 0 or 1"));
  EXPECT_THAT(Refusal(one + Key("k", GgufValueType::kUint64, "1234567")), HasSubstr("truncated"));
  EXPECT_THAT(Refusal(one + Key("k", GgufValueType::kString, Bytes(uint64_t{9}) + "x")),
              HasSubstr("truncated: key \"k\" needs 9 bytes at byte 45, 1 follow"));
  const auto array = [&](uint32_t type, uint64_t count, const std::string& rest) {
    return Refusal(one + Key("k", GgufValueType::kArray, Bytes(type) + Bytes(count) + rest));
  };
  EXPECT_THAT(array(13, 0, ""), HasSubstr("unknown type 13"));
  EXPECT_THAT(array(9, 0, ""), HasSubstr("array of arrays"));
  EXPECT_THAT(array(0, UINT64_MAX, "x"), HasSubstr("claims 18446744073709551615 elements"));
  EXPECT_THAT(array(12, (UINT64_MAX >> 3) + 2, "x"), HasSubstr("elements"));
  EXPECT_THAT(array(8, 3, std::string(16, '\0')), HasSubstr("truncated"));
  EXPECT_THAT(array(0, (1 << 24) + 1, std::string((1 << 24) + 1, '\0')),
              HasSubstr("claims 16777217 elements, more than 16777216"));
  EXPECT_THAT(array(8, 1, Bytes(UINT64_MAX)), HasSubstr("claims"));
  EXPECT_THAT(array(7, 2, std::string("\x01\x02", 2)), HasSubstr("must hold 0 or 1"));
  const std::string key = Key("k", GgufValueType::kUint8, "x");
  EXPECT_THAT(Refusal(Header(0, 2) + key + key), HasSubstr("key \"k\" occurs twice"));
  const auto alignment = [&](uint32_t value) {
    return Refusal(one + Key("general.alignment", GgufValueType::kUint32, Bytes(value)));
  };
  EXPECT_THAT(alignment(0), HasSubstr("general.alignment must be an integer from 8"));
  EXPECT_THAT(alignment(24), HasSubstr("must be a power of two, is 24"));
  EXPECT_THAT(alignment(1u << 31), HasSubstr("general.alignment must be"));
}

TEST_F(GgufTest, RefusesEveryLieOfATensor) {
  const auto one = [&](const std::string& entry, size_t size) {
    return Refusal(WithData(Header(1, 0) + entry, size));
  };
  const uint32_t f32 = 0, q4_0 = 2;
  EXPECT_TRUE(Open(WithData(Header(1, 0) + Entry("t", {8}, f32, 0), 32)).ok());
  EXPECT_THAT(one(Entry(std::string(65, 'x'), {8}, f32, 0), 32), HasSubstr("at most 64"));
  EXPECT_THAT(one(Entry("", {8}, f32, 0), 32), HasSubstr("name of tensor 0 is empty"));
  EXPECT_THAT(one(Entry("t", {}, f32, 0), 32), HasSubstr("must have 1 to 4 dimensions, has 0"));
  EXPECT_THAT(one(Entry("t", {1, 1, 1, 1, 8}, f32, 0), 32), HasSubstr("has 5"));
  EXPECT_THAT(one(Entry("t", {8, 0}, f32, 0), 32), HasSubstr("no dimension may be 0"));
  EXPECT_THAT(one(Entry("t", {UINT64_MAX}, f32, 0), 32), HasSubstr("too large"));
  EXPECT_THAT(one(Entry("t", {uint64_t{1} << 62, 2, 2}, f32, 0), 32), HasSubstr("too large"));
  EXPECT_THAT(one(Entry("t", {uint64_t{1} << 62}, f32, 0), 32), HasSubstr("too large"));
  EXPECT_THAT(one(Entry("t", {32}, 10, 0), 32),
              HasSubstr("tensor \"t\": its type 10 is not supported; supported: F32, F16"));
  EXPECT_THAT(one(Entry("t", {48}, q4_0, 0), 36),
              HasSubstr("a row of 48 weights is not a whole number of Q4_0 blocks of 32"));
  EXPECT_THAT(one(Entry("t", {8}, f32, 1), 64), HasSubstr("not a multiple of the alignment 32"));
  EXPECT_THAT(one(Entry("t", {8}, f32, 32), 64), HasSubstr("leaves a gap"));
  EXPECT_THAT(one(Entry("t", {16}, f32, 0), 63), HasSubstr("Is it truncated?"));
  EXPECT_THAT(one(Entry("t", {8}, f32, uint64_t{1} << 63), 32), HasSubstr("leaves a gap"));
  EXPECT_THAT(one(Entry("t", {8}, f32, 0), 65), HasSubstr("33 bytes after the last tensor"));
  EXPECT_THAT(Refusal(Header(1, 0) + Entry("t", {8}, f32, 0).substr(0, 20)),
              HasSubstr("truncated: tensor \"t\""));
  EXPECT_THAT(
      Refusal(WithData(Header(2, 0) + Entry("a", {16}, f32, 0) + Entry("b", {8}, f32, 32), 64)),
      HasSubstr("tensor \"b\": it begins at 32 and overlaps the tensor before, which ends at 64"));
  EXPECT_THAT(
      Refusal(WithData(Header(2, 0) + Entry("a", {8}, f32, 0) + Entry("a", {8}, f32, 32), 64)),
      HasSubstr("tensor \"a\" occurs twice"));
}

TEST_F(GgufTest, TakesTensorsInAnyOrder) {
  auto reader =
      Open(WithData(Header(2, 0) + Entry("a", {8}, 0, 32) + Entry("b", {2, 3}, 0, 0), 64));
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_THAT((*reader)->tensors().at("b").shape, ElementsAre(3, 2));
  EXPECT_EQ((*reader)->tensors().at("b").bytes.size(), 24u);
}

// A cut-off file is refused at every length, and no byte of the header can crash the reader.
TEST_F(GgufTest, SurvivesCutsAndFlips) {
  const std::string whole = WithData(
      Header(2, 2) + Key("general.alignment", GgufValueType::kUint32, Bytes(uint32_t{32})) +
          Key("k", GgufValueType::kArray,
              Bytes(uint32_t{8}) + Bytes(uint64_t{2}) + Text("ab") + Text("")) +
          Entry("a", {32, 2}, 2, 0) + Entry("b", {8}, 0, 64),
      96);
  ASSERT_TRUE(Open(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Open(whole.substr(0, size)).ok()) << size;
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const char flip : {'\x01', '\x80', '\xFF'}) {
      std::string changed = whole;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      (void)Open(changed);
    }
  }
}

}  // namespace
}  // namespace qpruner::engine
