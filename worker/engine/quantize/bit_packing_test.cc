#include "worker/engine/quantize/bit_packing.h"

#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

using ::testing::ElementsAre;

TEST(BitPacking, AStreamFromTheLowestBitOn) {
  std::vector<uint8_t> packed(2);
  PackBits(std::vector<uint8_t>{1, 2, 3, 4, 5}.data(), 5, 3, packed.data());
  // 5 4 3 2 1 from high to low: 101 100 011 010 001.
  EXPECT_THAT(packed, ElementsAre(0b11010001, 0b01011000));
  PackNibbles(std::vector<uint8_t>{1, 2, 3}.data(), 3, 7, packed.data());
  EXPECT_THAT(packed, ElementsAre(0x12, 0x37));
}

TEST(BitPacking, EachBitIsWhereTheDefinitionSays) {
  std::mt19937 random(5);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t count : {1, 7, 8, 9, 64, 67, 200}) {
      std::vector<uint8_t> codes(static_cast<size_t>(count));
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & ((1u << bits) - 1));
      std::vector<uint8_t> expected(static_cast<size_t>(PackedCodeBytes(count, bits)), 0);
      for (int64_t i = 0; i < count * bits; ++i) {
        const int bit = codes[static_cast<size_t>(i / bits)] >> (i % bits) & 1;
        expected[static_cast<size_t>(i / 8)] |= static_cast<uint8_t>(bit << (i % 8));
      }
      std::vector<uint8_t> packed(expected.size(), 0xFF), back(codes.size(), 0xFF);
      PackBits(codes.data(), count, bits, packed.data());
      EXPECT_EQ(packed, expected) << bits << " bits, " << count;
      UnpackBits(packed.data(), count, bits, back.data());
      EXPECT_EQ(back, codes) << bits << " bits, " << count;
    }
  }
}

}  // namespace
}  // namespace qpruner::engine
