// The inner loops of the formats whose codes index a table, on plain float32 arrays of one thread.
// No LibTorch here, so that they are compiled alone, with clones for wider vector units.
//
// A weight matrix is cut into blocks of consecutive values; each is divided by its absmax, and a
// code says which value of the table is meant. All inputs are finite. Roundings are those of IEEE
// float32, one for each operation written: compiled without contraction into fused multiply-adds,
// so all clones give the same bits.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_KERNELS_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_KERNELS_H_

#include <cstdint>

namespace qpruner::engine {

enum class Codebook { kNf2, kNf3, kNf4, kNf8, kFp4 };

// Weights that share one absmax, in every codebook format.
inline constexpr int64_t kCodebookBlock = 64;

int CodebookBits(Codebook codebook);
// The table: 2^bits values, by code.
const float* CodebookValues(Codebook codebook);

// `count` > 0 values that start at a block's start; only the last block may be short. Writes a code
// below 2^bits for each value and one absmax a block.
//
// NF4 and FP4 round as bitsandbytes' portable code does: a full block is multiplied by the inverse
// of its absmax, a short one divided by it (and its absmax is stored as at least 1e-38); a value on
// the midpoint of two goes to the lower one. NF2, NF3 and NF8 round as PEFT's NFQuantizer: divided,
// then the first of the values whose float32 distance is smallest. A block of zeros gets codes of
// 0, where NFQuantizer divides 0 by 0.
void EncodeCodebook(Codebook codebook, const float* values, int64_t count, uint8_t* codes,
                    float* absmax);
void DecodeCodebook(Codebook codebook, const uint8_t* codes, const float* absmax, int64_t count,
                    float* values);

// Double quantization (QLoRA, section 3): absmax values less their mean, in blocks of 256, by the
// dynamic map; rounded as NF4 is. bitsandbytes' compiled CPU kernel rounds these with a table that
// errs by up to 1.6e-5 of a block's largest; its portable code, which is followed, does not.
inline constexpr int64_t kNestedBlock = 256;
void EncodeNestedAbsmax(const float* absmax, int64_t count, float offset, uint8_t* codes,
                        float* nested_absmax);
void DecodeNestedAbsmax(const uint8_t* codes, const float* nested_absmax, float offset,
                        int64_t count, float* absmax);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_CODEBOOK_KERNELS_H_
