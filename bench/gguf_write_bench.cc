// Quantizes a model into GGUF and writes it: seconds, for comparison with llama.cpp
// (gguf_write_peer.py).
//
// usage: qpruner_gguf_write_bench MODEL OUT.gguf TYPE THREADS
// MODEL is a model folder or .gguf file; all linears get TYPE (Q4_0, Q8_0, Q4_K, ..), embedding and
// head Q8_0. The clock runs from the opened model to the file on disk. Prints one JSON object.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "worker/engine/export/gguf_model.h"
#include "worker/engine/formats/checkpoint.h"
#include "worker/engine/formats/ggml_type.h"
#include "worker/engine/formats/tokenizer_files.h"
#include "worker/engine/model/checkpoint_source.h"
#include "worker/engine/quantize/assignment.h"

namespace {

using namespace qpruner::engine;  // NOLINT: a program of one file.

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: qpruner_gguf_write_bench MODEL OUT.gguf TYPE THREADS\n");
    return 2;
  }
  at::set_num_threads(std::atoi(argv[4]));
  const auto checkpoint = Checkpoint::Open(argv[1]);
  if (!checkpoint.ok()) return Fail(checkpoint.status());
  auto tokenizer = ReadTokenizerFiles(argv[1]);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  GgufModelOptions options;
  options.tokenizer = *std::move(tokenizer);
  options.embedding = GgmlType::kQ8_0;
  bool known = false;
  for (uint32_t number = 0; number < 64; ++number) {
    const auto type = GgmlTypeFromNumber(number);
    if (!type || std::string(InfoOf(*type).name) != argv[3]) continue;
    known = true;
    for (const auto& [linear, format] : UniformAssignment((*checkpoint)->config(), {})) {
      options.linears[linear] = *type;
    }
  }
  if (!known) return Fail(absl::InvalidArgumentError("No such type"));
  const auto source = MakeCheckpointSource(*checkpoint, at::kCPU, at::kFloat);
  const auto begin = std::chrono::steady_clock::now();
  const auto summary = WriteGgufModel(argv[2], *source, options);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  if (!summary.ok()) return Fail(summary.status());
  std::printf("{\"seconds\": %.4f, \"bytes\": %lld}\n", seconds.count(),
              static_cast<long long>(summary->weight_bytes));
  return 0;
}
