// Latency of one linear in decode (1 token) and prefill (128 tokens) from packed weights, by ATen's
// low-bit CPU kernels, beside the bfloat16 product.
//
//   ninja -C build/release qpruner_low_bit_bench && build/release/bin/qpruner_low_bit_bench
//
// Shapes: the MLP of SmolLM2-135M (1536 x 576) and a projection of a 7B model (4096 x 4096). Read
// the figures as ratios to bfloat16 of the same run.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "worker/engine/quantize/low_bit_linear.h"

namespace qpruner::engine {
namespace {

const Format kFormats[] = {Format::Bfloat16(), Format::Integer8Row(), Format::IntegerGroup(4, 64)};

void BM_Linear(benchmark::State& state, const Format& format, int64_t rows, int64_t cols,
               int64_t tokens) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(1);
  const PackedWeight packed = Quantize(at::randn({rows, cols}, generator) * 0.02, format);
  const auto linear = LowBitLinear::Create(packed);
  if (!linear.ok()) return state.SkipWithError(linear.status().ToString().c_str());
  const at::Tensor x = at::randn({tokens, cols}, generator).to(at::kBFloat16);
  for (auto _ : state) benchmark::DoNotOptimize((*linear)(x));
  state.SetItemsProcessed(state.iterations() * tokens);
  state.counters["weight_bytes"] = static_cast<double>(linear->bytes());
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) {
  using namespace qpruner::engine;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1536, 576}, {4096, 4096}}) {
    for (const int64_t tokens : {1, 128}) {
      for (const Format& format : kFormats) {
        benchmark::RegisterBenchmark(
            absl::StrCat(rows, "x", cols, "/tokens:", tokens, "/", FormatName(format)).c_str(),
            BM_Linear, format, rows, cols, tokens)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
