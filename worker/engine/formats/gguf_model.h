// What a GGUF file says about the model in it, in the terms of Hugging Face: config, tensor names
// and row order. Shared by reading and writing.
#ifndef QPRUNER_WORKER_ENGINE_FORMATS_GGUF_MODEL_H_
#define QPRUNER_WORKER_ENGINE_FORMATS_GGUF_MODEL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/formats/gguf_reader.h"
#include "worker/engine/model/model_config.h"

namespace qpruner::engine {

// The config of the model in `file`: architectures llama (which llama.cpp uses for Mistral too, and
// GgufArchitectureOf for some of Qwen2), qwen2 and qwen3; head counts and MLP widths shared by all
// blocks or one for each; RoPE scaling "linear", or Llama 3's where rope_freqs.weight holds its
// factors; a head that is tied if there is no output.weight. INVALID_ARGUMENT names the key or
// tensor and the rule: anything that would change the computation and is not known here is refused,
// so that no model is read wrongly in silence.
absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufReader& file);

// The name of the architecture that computes this model in llama.cpp: llama for Mistral, and for
// Qwen2 where its own cannot hold it. INVALID_ARGUMENT says what none of them has.
absl::StatusOr<std::string> GgufArchitectureOf(const ModelConfig& config);

// "blk.3.attn_q.weight" <-> "model.layers.3.self_attn.q_proj.weight". nullopt: no such name.
std::optional<std::string> HuggingFaceNameOf(absl::string_view gguf_name);
std::optional<std::string> GgufNameOf(absl::string_view hugging_face_name);

// Per head dimension pair, what RoPE's frequency is divided by under Llama 3's scaling: the content
// of rope_freqs.weight, [head_dim / 2].
inline constexpr char kRopeFactorsTensor[] = "rope_freqs.weight";
std::vector<float> Llama3RopeFactors(const RopeScaling& scaling, double rope_theta,
                                     int64_t head_dim);

// llama.cpp turns neighbouring pairs of a head's dimensions where Hugging Face turns one of the
// first half with one of the second, so for the llama architecture it stores the rows of Q and K in
// another order. The row of GGUF's tensor that holds Hugging Face's row `row`.
inline int64_t GgufRowOf(int64_t row, int64_t head_dim) {
  const int64_t head = row / head_dim, within = row % head_dim, half = head_dim / 2;
  return head * head_dim + 2 * (within % half) + within / half;
}
// True if the rows of that Hugging Face tensor are stored so for an architecture of GGUF.
bool HasReorderedRows(absl::string_view architecture, absl::string_view hugging_face_name);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FORMATS_GGUF_MODEL_H_
