// Latency in decode (1 token) and prefill (128 tokens) from packed weights, by ATen's low-bit CPU
// kernels, beside the bfloat16 product: of one linear, and of all linears of a model.
//
//   ninja -C build/release qpruner_low_bit_bench && build/release/bin/qpruner_low_bit_bench
//
// Linears: the MLP of SmolLM2-135M (1536 x 576) and a projection of a 7B model (4096 x 4096).
// Model: the 210 linears of SmolLM2-135M's 30 blocks in one format, and its head in bfloat16, each
// with weights of its own, so that decode reads as many bytes as serving does; attention, norms and
// activations are left out, for they do not depend on the format. Read the figures as ratios to
// bfloat16 of the same run.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "worker/engine/quantize/low_bit_linear.h"

namespace qpruner::engine {
namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

const Format kFormats[] = {Format::Bfloat16(), Format::Integer8Row(), Format::IntegerGroup(4, 64)};

// SmolLM2-135M: query, key, value, output, gate, up, down.
const Shape kBlock[] = {{576, 576},  {192, 576},  {192, 576}, {576, 576},
                        {1536, 576}, {1536, 576}, {576, 1536}};
constexpr int kBlocks = 30;
constexpr Shape kHead = {49152, 576};

absl::StatusOr<LowBitLinear> RandomLinear(const Format& format, const Shape& shape,
                                          const at::Generator& generator) {
  const at::Tensor weight = at::randn({shape.rows, shape.cols}, generator) * 0.02;
  return LowBitLinear::Create(Quantize(weight, format));
}

at::Tensor Input(int64_t tokens, int64_t cols) {
  return at::randn({tokens, cols}, at::make_generator<at::CPUGeneratorImpl>(2)).to(at::kBFloat16);
}

void BM_Linear(benchmark::State& state, const Format& format, const Shape& shape, int64_t tokens) {
  const auto linear = RandomLinear(format, shape, at::make_generator<at::CPUGeneratorImpl>(1));
  if (!linear.ok()) return state.SkipWithError(linear.status().ToString().c_str());
  const at::Tensor x = Input(tokens, shape.cols);
  for (auto _ : state) benchmark::DoNotOptimize((*linear)(x));
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["weight_bytes"] = static_cast<double>(linear->bytes());
}

void BM_Model(benchmark::State& state, const Format& format, int64_t tokens) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(1);
  std::vector<LowBitLinear> linears;
  std::vector<at::Tensor> inputs;
  int64_t bytes = 0;
  const auto add = [&](const Format& kind, const Shape& shape, int64_t rows_of_input) {
    auto linear = RandomLinear(kind, shape, generator);
    if (!linear.ok()) return linear.status();
    bytes += linear->bytes();
    linears.push_back(*std::move(linear));
    inputs.push_back(Input(rows_of_input, shape.cols));
    return absl::OkStatus();
  };
  absl::Status added;
  for (int block = 0; block < kBlocks; ++block) {
    for (const Shape& shape : kBlock) added.Update(add(format, shape, tokens));
  }
  added.Update(add(Format::Bfloat16(), kHead, 1));  // Prefill needs the last token's logits only.
  if (!added.ok()) return state.SkipWithError(added.ToString().c_str());
  for (auto _ : state) {
    for (size_t i = 0; i < linears.size(); ++i) benchmark::DoNotOptimize(linears[i](inputs[i]));
  }
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["weight_bytes"] = static_cast<double>(bytes);
}

template <typename... Args>
void Register(const std::string& name, Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), args...)->UseRealTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) {
  using namespace qpruner::engine;
  for (const int64_t tokens : {1, 128}) {
    for (const Shape& shape : {Shape{1536, 576}, Shape{4096, 4096}}) {
      for (const Format& format : kFormats) {
        Register(absl::StrCat("linear ", shape.rows, "x", shape.cols, "/tokens:", tokens, "/",
                              FormatName(format)),
                 BM_Linear, format, shape, tokens);
      }
    }
    for (const Format& format : kFormats) {
      Register(absl::StrCat("SmolLM2-135M/tokens:", tokens, "/", FormatName(format)), BM_Model,
               format, tokens);
    }
  }
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
