#include "worker/engine/evaluate/logit_rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "worker/engine/model/vector_loops.h"

namespace qpruner::engine {
namespace {

// Terms that are summed in float32 before the sum goes into a double.
constexpr int64_t kPart = 1024;

template <typename T>
QPRUNER_INLINE void Summarize(const T* row, int64_t width, double* log_sum_exp,
                              int64_t* most_likely) {
  float max = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : max)
  for (int64_t i = 0; i < width; ++i) {
    const float value = ToFloat(row[i]);
    max = value > max ? value : max;
  }
  // If all are NaN no position is found, and 0 stands.
  *most_likely = 0;
  for (int64_t i = 0; i < width; ++i) {
    if (ToFloat(row[i]) == max) {
      *most_likely = i;
      break;
    }
  }
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += kPart) {
    const int64_t end = std::min(width, begin + kPart);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += ExpOfNegative(ToFloat(row[i]) - max);
    total += sum;
  }
  *log_sum_exp = max + std::log(total);
}

// ln p - ln q = (reference - row) - (reference_log_sum - log_sum). What is subtracted is one number
// a row, so its rounding would not average out over the vocabulary: what float32 leaves of it is
// taken off at the end, where the probabilities have summed to 1.
template <typename T>
QPRUNER_INLINE double Diverge(const T* reference, double reference_log_sum, const T* row,
                              double log_sum, int64_t width) {
  const double shift = reference_log_sum - log_sum;
  const float rounded_shift = static_cast<float>(shift);
  const float rounded_log_sum = static_cast<float>(reference_log_sum);
  double total = rounded_shift - shift;
  for (int64_t begin = 0; begin < width; begin += kPart) {
    const int64_t end = std::min(width, begin + kPart);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
      const float logit = ToFloat(reference[i]);
      sum += ExpOfNegative(logit - rounded_log_sum) * (logit - ToFloat(row[i]) - rounded_shift);
    }
    total += sum;
  }
  return total;
}

// One clone an instruction set for each element type.
QPRUNER_VECTOR_CLONES void SummarizeFloat(const float* row, int64_t width, double* log_sum_exp,
                                          int64_t* most_likely) {
  Summarize(row, width, log_sum_exp, most_likely);
}
QPRUNER_VECTOR_CLONES void SummarizeBFloat16(const uint16_t* row, int64_t width,
                                             double* log_sum_exp, int64_t* most_likely) {
  Summarize(row, width, log_sum_exp, most_likely);
}
QPRUNER_VECTOR_CLONES double DivergeFloat(const float* reference, double reference_log_sum,
                                          const float* row, double log_sum, int64_t width) {
  return Diverge(reference, reference_log_sum, row, log_sum, width);
}
QPRUNER_VECTOR_CLONES double DivergeBFloat16(const uint16_t* reference, double reference_log_sum,
                                             const uint16_t* row, double log_sum, int64_t width) {
  return Diverge(reference, reference_log_sum, row, log_sum, width);
}

void Check(const at::Tensor& logits) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_cpu() && logits.is_contiguous() &&
                  (logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kBFloat16),
              "Logits must be contiguous rows of float32 or bfloat16 on the CPU");
}

const uint16_t* Bits(const at::Tensor& tensor) {
  return reinterpret_cast<const uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}

}  // namespace

RowSummary SummarizeRows(const at::Tensor& logits) {
  Check(logits);
  const int64_t rows = logits.size(0), width = logits.size(1);
  RowSummary summary{at::empty({rows}, at::kDouble), at::empty({rows}, at::kLong)};
  double* const sums = summary.log_sum_exp.mutable_data_ptr<double>();
  int64_t* const tops = summary.most_likely.mutable_data_ptr<int64_t>();
  const bool wide = logits.scalar_type() == at::kFloat;
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (wide) {
        SummarizeFloat(logits.const_data_ptr<float>() + row * width, width, sums + row, tops + row);
      } else {
        SummarizeBFloat16(Bits(logits) + row * width, width, sums + row, tops + row);
      }
    }
  });
  return summary;
}

at::Tensor DivergeRows(const at::Tensor& reference, const at::Tensor& reference_log_sum_exp,
                       const at::Tensor& logits, const at::Tensor& log_sum_exp) {
  Check(reference);
  Check(logits);
  TORCH_CHECK(
      reference.sizes() == logits.sizes() && reference.scalar_type() == logits.scalar_type(),
      "Logits of reference and model must have one shape and type");
  const int64_t rows = logits.size(0), width = logits.size(1);
  at::Tensor divergence = at::empty({rows}, at::kDouble);
  double* const out = divergence.mutable_data_ptr<double>();
  const double* const reference_sums = reference_log_sum_exp.const_data_ptr<double>();
  const double* const sums = log_sum_exp.const_data_ptr<double>();
  const bool wide = logits.scalar_type() == at::kFloat;
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      out[row] =
          wide ? DivergeFloat(reference.const_data_ptr<float>() + row * width, reference_sums[row],
                              logits.const_data_ptr<float>() + row * width, sums[row], width)
               : DivergeBFloat16(Bits(reference) + row * width, reference_sums[row],
                                 Bits(logits) + row * width, sums[row], width);
    }
  });
  return divergence;
}

}  // namespace qpruner::engine
