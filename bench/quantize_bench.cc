// Time to quantize and dequantize one linear of an LLM, for each storage format.
//
//   ninja -C build/release qpruner_quantize_bench && build/release/bin/qpruner_quantize_bench
//
// bench/quantize_peer.py runs this and bitsandbytes side by side.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include "worker/engine/quantize/format.h"

namespace qpruner::engine {
namespace {

// A square projection of a 7B model.
constexpr int64_t kSize = 4096;

const Format kFormats[] = {Format::NormalFloat(4), Format::IntegerGroup(4, 64),
                           Format::Integer8Row(), Format::Bfloat16()};

at::Tensor Weight() {
  return at::randn({kSize, kSize}, at::make_generator<at::CPUGeneratorImpl>(1)) * 0.02;
}

void BM_Quantize(benchmark::State& state, const Format& format) {
  const at::Tensor weight = Weight();
  for (auto _ : state) benchmark::DoNotOptimize(Quantize(weight, format));
  state.SetItemsProcessed(state.iterations() * weight.numel());
}

void BM_Dequantize(benchmark::State& state, const Format& format) {
  const PackedWeight packed = Quantize(Weight(), format);
  for (auto _ : state) benchmark::DoNotOptimize(Dequantize(packed, at::kFloat, at::kCPU));
  state.SetItemsProcessed(state.iterations() * kSize * kSize);
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) {
  using namespace qpruner::engine;
  for (const Format& format : kFormats) {
    // Wall time, of all threads together.
    benchmark::RegisterBenchmark(("quantize/" + FormatName(format)).c_str(), BM_Quantize, format)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("dequantize/" + FormatName(format)).c_str(), BM_Dequantize,
                                 format)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::AddCustomContext("threads", std::to_string(at::get_num_threads()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
