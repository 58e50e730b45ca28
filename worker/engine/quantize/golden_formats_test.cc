// Against the libraries whose formats these are: goldens by tests/compat/quantize_golden.py
// (bitsandbytes), normal_float_golden.py (PEFT) and integer_golden.py (compressed-tensors).
#include <ATen/ATen.h>

#include <cstring>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/quantize/codebook_format.h"
#include "worker/engine/quantize/codebooks.h"
#include "worker/engine/quantize/format.h"
#include "worker/engine/quantize/integer_format.h"

namespace qpruner::engine {
namespace {

// Equal bits, so that -0 is not 0 and subnormals are not zeros.
void ExpectSameBits(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const at::Tensor a = actual.contiguous(), e = expected.contiguous();
  const auto* a_bytes = static_cast<const uint8_t*>(a.const_data_ptr());
  const auto* e_bytes = static_cast<const uint8_t*>(e.const_data_ptr());
  const size_t size = a.element_size();
  for (int64_t i = 0; i < a.numel(); ++i) {
    ASSERT_EQ(std::memcmp(a_bytes + i * size, e_bytes + i * size, size), 0)
        << what << ", element " << i << ": " << a.reshape({-1})[i].item<double>() << " instead of "
        << e.reshape({-1})[i].item<double>();
  }
}

// A file of tests/golden, and its cases: the names in front of ".weight".
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name) {
    auto reader = SafetensorsReader::Open("tests/golden/" + name);
    if (!reader.ok()) throw std::runtime_error(std::string(reader.status().message()));
    reader_ = *std::move(reader);
    for (const auto& [tensor, view] : reader_->tensors()) {
      const size_t dot = tensor.find('.');
      if (tensor.substr(dot) == ".weight") cases_.insert(tensor.substr(0, dot));
    }
  }

  const std::set<std::string>& cases() const { return cases_; }
  bool Has(const std::string& name) const { return reader_->tensors().count(name) > 0; }
  at::Tensor Get(const std::string& name) const {
    return TensorFromView(reader_->tensors().at(name), reader_);
  }

 private:
  std::shared_ptr<SafetensorsReader> reader_;
  std::set<std::string> cases_;
};

template <size_t kSize>
void ExpectTable(const std::array<float, kSize>& table, const at::Tensor& expected,
                 const std::string& what) {
  ExpectSameBits(at::from_blob(const_cast<float*>(table.data()), {int64_t{kSize}}), expected, what);
}

TEST(Bitsandbytes, FourBitCodesBitForBit) {
  const GoldenFile golden("quantize_bitsandbytes.safetensors");
  ASSERT_EQ(golden.cases().size(), 14);
  for (const Format& format : {Format::NormalFloat(4), Format::Float4()}) {
    const std::string kind = FormatName(format);
    for (const std::string& name : golden.cases()) {
      const std::string prefix = absl::StrCat(name, ".", kind, ".");
      const PackedWeight packed = Quantize(golden.Get(name + ".weight"), format);
      ExpectSameBits(packed.tensors.at("absmax"), golden.Get(prefix + "absmax"), prefix);
      ExpectSameBits(packed.tensors.at("codes"), golden.Get(prefix + "codes"), prefix);
      for (const auto& [suffix, dtype] :
           {std::pair("float32", at::kFloat), std::pair("bfloat16", at::kBFloat16)}) {
        if (!golden.Has(prefix + suffix)) continue;
        ExpectSameBits(Dequantize(packed, dtype, at::kCPU), golden.Get(prefix + suffix),
                       prefix + suffix);
      }
    }
  }
}

TEST(Bitsandbytes, DoubleQuantizationBitForBit) {
  const GoldenFile golden("quantize_bitsandbytes.safetensors");
  const at::Tensor absmax = golden.Get("nested.absmax");
  const float offset = golden.Get("nested.offset").item<float>();
  at::Tensor codes = at::empty_like(absmax, at::kByte);
  at::Tensor scales = at::empty_like(golden.Get("nested.nested_absmax"));
  at::Tensor back = at::empty_like(absmax);
  EncodeNestedAbsmax(absmax.const_data_ptr<float>(), absmax.numel(), offset,
                     codes.mutable_data_ptr<uint8_t>(), scales.mutable_data_ptr<float>());
  ExpectSameBits(codes, golden.Get("nested.codes"), "codes");
  ExpectSameBits(scales, golden.Get("nested.nested_absmax"), "nested_absmax");
  DecodeNestedAbsmax(codes.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(), offset,
                     absmax.numel(), back.mutable_data_ptr<float>());
  ExpectSameBits(back, golden.Get("nested.float32"), "absmax again");
}

TEST(Bitsandbytes, Int8RowBitForBit) {
  const GoldenFile golden("quantize_bitsandbytes.safetensors");
  int compared = 0;
  for (const std::string& name : golden.cases()) {
    if (!golden.Has(name + ".int8.codes")) continue;
    ++compared;
    const PackedWeight packed = Quantize(golden.Get(name + ".weight"), Format::Integer8Row());
    ExpectSameBits(packed.tensors.at("SCB"), golden.Get(name + ".int8.SCB"), name + " SCB");
    ExpectSameBits(packed.tensors.at("codes"), golden.Get(name + ".int8.codes"), name + " codes");
    ExpectSameBits(Dequantize(packed, at::kFloat, at::kCPU), golden.Get(name + ".int8.float32"),
                   name + " dequantized");
  }
  EXPECT_EQ(compared, 13);  // All but "tiny", whose last row float16 cannot hold.
}

TEST(Bitsandbytes, Tables) {
  const GoldenFile golden("quantize_bitsandbytes.safetensors");
  ExpectTable(kNf4Values, golden.Get("codebook.nf4"), "nf4");
  // Its minus zero is a plain zero there: equal values.
  EXPECT_TRUE(at::equal(at::from_blob(const_cast<float*>(kFp4Values.data()), {16}),
                        golden.Get("codebook.fp4")));
  ExpectTable(kDynamicMap, golden.Get("codebook.dynamic"), "dynamic map");
}

TEST(Peft, NormalFloatOf2And3And8BitsBitForBit) {
  const GoldenFile golden("quantize_peft.safetensors");
  ASSERT_EQ(golden.cases().size(), 5);
  ExpectTable(kNf2Values, golden.Get("codebook.nf2"), "nf2");
  ExpectTable(kNf3Values, golden.Get("codebook.nf3"), "nf3");
  ExpectTable(kNf8Values, golden.Get("codebook.nf8"), "nf8");
  for (const int bits : {2, 3, 8}) {
    const Format format = Format::NormalFloat(bits);
    for (const std::string& name : golden.cases()) {
      const std::string prefix = absl::StrCat(name, ".nf", bits, ".");
      const at::Tensor weight = golden.Get(name + ".weight");
      const PackedWeight packed = Quantize(weight, format);
      ExpectSameBits(packed.tensors.at("absmax"), golden.Get(prefix + "absmax"), prefix);
      // The codes of the golden are not packed.
      at::Tensor codes = at::empty({weight.numel()}, at::kByte);
      at::Tensor absmax = at::empty_like(packed.tensors.at("absmax"));
      EncodeCodebook(CodebookOf(format), weight.const_data_ptr<float>(), weight.numel(),
                     codes.mutable_data_ptr<uint8_t>(), absmax.mutable_data_ptr<float>());
      ExpectSameBits(codes, golden.Get(prefix + "codes").reshape({-1}), prefix + "codes");
      ExpectSameBits(Dequantize(packed, at::kFloat, at::kCPU), golden.Get(prefix + "float32"),
                     prefix + "float32");
    }
  }
}

TEST(CompressedTensors, IntegerGroupsBitForBit) {
  const GoldenFile golden("quantize_compressed_tensors.safetensors");
  ASSERT_EQ(golden.cases().size(), 4);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const bool symmetric : {false, true}) {
      const Format format = Format::IntegerGroup(bits, 32, symmetric);
      for (const std::string& name : golden.cases()) {
        const std::string prefix = absl::StrCat(name, symmetric ? ".sym." : ".asym.", bits, ".");
        const PackedWeight packed = Quantize(golden.Get(name + ".weight"), format);
        ExpectSameBits(packed.tensors.at("scale"), golden.Get(prefix + "scale"), prefix + "scale");
        if (!symmetric) {
          ExpectSameBits(UnpackIntegers(packed).zero_point, golden.Get(prefix + "zero_point"),
                         prefix + "zero_point");
        }
        // Rows of whole 32-bit words, so the bytes are the same.
        ExpectSameBits(packed.tensors.at("codes"), golden.Get(prefix + "packed"),
                       prefix + "packed");
        ExpectSameBits(Dequantize(packed, at::kFloat, at::kCPU), golden.Get(prefix + "float32"),
                       prefix + "float32");
      }
    }
  }
}

}  // namespace
}  // namespace qpruner::engine
