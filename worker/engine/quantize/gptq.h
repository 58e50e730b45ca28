// GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounding that corrects, with the inputs' second
// moments, the weights that are still to be rounded for the errors made so far.
#ifndef QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_H_
#define QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "worker/engine/quantize/format.h"

namespace qpruner::engine {

struct GptqOptions {
  // Added to the Hessian's diagonal, as a share of its mean. Where the matrix is still not positive
  // definite, ten times as much, and so on.
  double damping = 0.01;
  // Columns by falling diagonal of the Hessian ("act-order") instead of by position. Scales belong
  // to the unpermuted groups all the same, so that every engine can read the result.
  bool activation_order = true;
  // Columns that are corrected one by one before the rest of the matrix is, once: speed only.
  int64_t block_columns = 128;
};

// Whether GPTQ rounds to `format`: integers in groups and tables. int8-row and bfloat16 are rounded
// to nearest, where correcting gains nothing that a text can show.
bool SupportsGptq(const Format& format);

// weight [rows, cols] of a floating dtype; hessian [cols, cols]: sum or mean of x x^T over the
// inputs x of the linear (any positive factor). Scales, zero points and absmax are those of
// round-to-nearest on `weight` (chosen before any correction, "static groups"); only codes differ.
// One result for each of `formats`, sharing the factorization. Inputs that are always 0 round to
// nearest. Throws c10::Error as Quantize does, for a format that SupportsGptq refuses, and where
// the Hessian is not finite.
std::vector<PackedWeight> QuantizeGptq(const at::Tensor& weight, const at::Tensor& hessian,
                                       const std::vector<Format>& formats,
                                       const GptqOptions& options = {});

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_QUANTIZE_GPTQ_H_
