// Every linear of a model in every candidate format, quantized once with GPTQ and kept on disk: a
// trial then only picks (docs/adr/0014).
//
// A folder with one file a block, block-00003.safetensors, which holds the packed tensors (see
// quantize/format.h) as "<linear>.<format>.<tensor>", such as
// "model.layers.3.mlp.up_proj.int4-group64.codes".
#ifndef QPRUNER_WORKER_ENGINE_CALIBRATE_WEIGHT_DATABASE_H_
#define QPRUNER_WORKER_ENGINE_CALIBRATE_WEIGHT_DATABASE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/engine/formats/safetensors_reader.h"
#include "worker/engine/model/weights.h"
#include "worker/engine/quantize/gptq.h"
#include "worker/engine/quantize/packed_weight_store.h"
#include "worker/engine/texts/token_batch.h"

namespace qpruner::engine {

// The name of a block's file.
std::string WeightDatabaseFile(int64_t block);

// For a database that is written with interruptions.
struct WeightDatabaseProgress {
  // The first ones, whose files are there already.
  int64_t written_blocks = 0;
  // Called once a block's file is durable; may be empty.
  std::function<void(int64_t block)> on_block;
};

// Walks `source` over `batches` and writes each block's linears in those of `formats` that
// SupportsGptq. `folder` is made if it is missing. Memory: as WalkInputMoments, and one block's
// packed weights. Files do not depend on `progress`. Throws c10::Error as QuantizeGptq; the message
// names the linear. Codes: of the failed system call.
absl::Status WriteWeightDatabase(const std::string& folder, WeightSource& source,
                                 const std::vector<TokenBatch>& batches,
                                 const std::vector<Format>& formats, const GptqOptions& options,
                                 const std::function<void(double fraction)>& on_progress = {},
                                 const WeightDatabaseProgress& progress = {});

// Maps the file of one block and checks it as WeightDatabase::Open does all of them.
absl::StatusOr<std::shared_ptr<const SafetensorsReader>> OpenWeightDatabaseBlock(
    const std::string& folder, const ModelConfig& config, const std::vector<Format>& formats,
    int64_t block);

class WeightDatabase final : public PackedWeightStore {
 public:
  // Maps the folder's files. Checks that every linear of `config` is there in every one of
  // `formats` that SupportsGptq, with the layout's dtypes and shapes. INVALID_ARGUMENT names the
  // file and tensor and the rule. NOT_FOUND: a file is missing.
  static absl::StatusOr<std::unique_ptr<WeightDatabase>> Open(const std::string& folder,
                                                              const ModelConfig& config,
                                                              const std::vector<Format>& formats);

  std::optional<PackedWeight> Find(int64_t block, LinearKind kind,
                                   const Format& format) const override;

 private:
  WeightDatabase() = default;

  ModelConfig config_;
  std::vector<std::shared_ptr<const SafetensorsReader>> blocks_;
};

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_CALIBRATE_WEIGHT_DATABASE_H_
