#include "worker/engine/quantize/gptq.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "worker/engine/quantize/codebook_format.h"
#include "worker/engine/quantize/gptq_kernels.h"
#include "worker/engine/quantize/integer_format.h"
#include "worker/engine/quantize/parallel_rows.h"

namespace qpruner::engine {
namespace {

constexpr double kLargestDamping = 100;

struct Factor {
  at::Tensor order;  // [cols] int64: the column that is rounded first, second, ...
  at::Tensor upper;  // [cols, cols] float32, in that order: U with H^-1 = U^T U.
};

Factor FactorInverse(const at::Tensor& hessian, const GptqOptions& options) {
  // float64: ill-conditioned matrices are the rule, and this is once a linear.
  at::Tensor h = hessian.to(at::kCPU, at::kDouble, /*non_blocking=*/false, /*copy=*/true);
  TORCH_CHECK_VALUE(at::isfinite(h).all().item<bool>(),
                    "GPTQ needs finite inputs: the Hessian is not finite");
  at::Tensor diagonal = h.diagonal();
  // An input that is always 0 is tied to nothing.
  diagonal.masked_fill_(diagonal == 0, 1);
  Factor factor;
  factor.order = options.activation_order
                     ? std::get<1>(at::sort(diagonal, /*stable=*/true, 0, /*descending=*/true))
                     : at::arange(h.size(0), at::kLong);
  h = h.index_select(0, factor.order).index_select(1, factor.order);
  diagonal = h.diagonal();
  const double unit = diagonal.mean().item<double>();
  double damping = options.damping;
  diagonal += damping * unit;
  for (;;) {
    auto [lower, failed] = at::linalg_cholesky_ex(h);
    if (failed.item<int>() == 0) {
      // Three matrices at a time: of wide linears each is about a gigabyte.
      at::Tensor inverse = at::cholesky_inverse(lower);
      lower.reset();
      const auto [upper, failed_inverse] = at::linalg_cholesky_ex(inverse, /*upper=*/true);
      if (failed_inverse.item<int>() == 0) {
        inverse.reset();
        factor.upper = upper.to(at::kFloat).contiguous();
        return factor;
      }
    }
    TORCH_CHECK_VALUE(damping < kLargestDamping, "GPTQ: the Hessian cannot be factored");
    diagonal += (std::max(damping, 1e-3) * 10 - damping) * unit;
    damping = std::max(damping, 1e-3) * 10;
  }
}

// Rounds the columns of `w` [rows, cols] in order of `factor`, which `w` already has. `round(row,
// first, count, w, u, codes, errors)` rounds one row's columns first .. first + count - 1.
template <typename Round>
at::Tensor RoundColumns(at::Tensor w, const Factor& factor, int64_t block_columns,
                        const Round& round) {
  const int64_t rows = w.size(0), cols = w.size(1);
  at::Tensor codes = at::empty({rows, cols}, at::kByte);
  uint8_t* code_data = codes.mutable_data_ptr<uint8_t>();
  const float* u = factor.upper.const_data_ptr<float>();
  for (int64_t first = 0; first < cols; first += block_columns) {
    const int64_t count = std::min(block_columns, cols - first);
    at::Tensor errors = at::empty({rows, count}, at::kFloat);
    float* error_data = errors.mutable_data_ptr<float>();
    float* data = w.mutable_data_ptr<float>();
    ParallelUnits(rows, count * (count + 1) / 2, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        round(row, first, count, data + row * cols + first, u + first * cols + first,
              code_data + row * cols + first, error_data + row * count);
      }
    });
    const int64_t rest = cols - first - count;
    if (rest == 0) break;
    w.narrow(1, first + count, rest)
        .sub_(at::matmul(errors,
                         factor.upper.narrow(0, first, count).narrow(1, first + count, rest)));
  }
  return codes;
}

// [rows, groups] -> [rows, cols] in the order of rounding.
at::Tensor SpreadGroups(const at::Tensor& of_group, int64_t group_size, const at::Tensor& order) {
  return of_group.index_select(1, order.div(group_size, "floor")).contiguous();
}

at::Tensor Unordered(const at::Tensor& codes, const at::Tensor& order) {
  at::Tensor result = at::empty_like(codes);
  return result.index_copy_(1, order, codes);
}

void RoundIntegers(const at::Tensor& values, const at::Tensor& ordered, const Factor& factor,
                   const GptqOptions& options, PackedWeight& packed) {
  const Format& format = packed.format;
  const int64_t cols = packed.cols;
  IntegerCodes integers = FindIntegerGroups(values, format);
  const at::Tensor scale =
      SpreadGroups(integers.scale.to(at::kFloat), format.group_size, factor.order);
  const at::Tensor zero_point = SpreadGroups(integers.zero_point, format.group_size, factor.order);
  const float* scales = scale.const_data_ptr<float>();
  const uint8_t* zeros = zero_point.const_data_ptr<uint8_t>();
  const at::Tensor codes =
      RoundColumns(ordered, factor, options.block_columns,
                   [&](int64_t row, int64_t first, int64_t count, float* w, const float* u,
                       uint8_t* out, float* errors) {
                     RoundRowToIntegers(w, count, u, cols, scales + row * cols + first,
                                        zeros + row * cols + first, format.bits, out, errors);
                   });
  integers.codes = Unordered(codes, factor.order);
  PackIntegers(integers, packed);
}

void RoundCodebook(const at::Tensor& ordered, const Factor& factor, const GptqOptions& options,
                   PackedWeight& packed) {
  const int64_t rows = packed.rows, cols = packed.cols;
  // The absmax as it comes back from storage, for each weight.
  const at::Tensor spread = CodebookAbsmax(packed)
                                .repeat_interleave(kCodebookBlock)
                                .narrow(0, 0, rows * cols)
                                .view({rows, cols})
                                .index_select(1, factor.order)
                                .contiguous();
  const float* absmax = spread.const_data_ptr<float>();
  const Codebook codebook = CodebookOf(packed.format);
  const at::Tensor codes = RoundColumns(
      ordered, factor, options.block_columns,
      [&](int64_t row, int64_t first, int64_t count, float* w, const float* u, uint8_t* out,
          float* errors) {
        RoundRowToCodebook(w, count, u, cols, absmax + row * cols + first, codebook, out, errors);
      });
  PackCodebookCodes(Unordered(codes, factor.order), packed);
}

}  // namespace

bool SupportsGptq(const Format& format) {
  return format.kind == FormatKind::kIntegerGroup || format.kind == FormatKind::kNormalFloat ||
         format.kind == FormatKind::kFloat4;
}

std::vector<PackedWeight> QuantizeGptq(const at::Tensor& weight, const at::Tensor& hessian,
                                       const std::vector<Format>& formats,
                                       const GptqOptions& options) {
  TORCH_CHECK_VALUE(options.damping >= 0 && options.block_columns >= 1,
                    "GPTQ needs a damping of at least 0 and blocks of at least 1 column");
  const Factor factor = FactorInverse(hessian, options);
  const at::Tensor values = weight.detach().to(at::kCPU, at::kFloat).contiguous();
  TORCH_CHECK_VALUE(factor.upper.size(0) == values.size(1), "GPTQ: a Hessian of ",
                    factor.upper.size(0), " inputs for a weight of ", values.size(1));
  std::vector<PackedWeight> results;
  for (const Format& format : formats) {
    TORCH_CHECK_VALUE(SupportsGptq(format), "GPTQ does not round to ", FormatName(format));
    // Checks the weight, and has the scales that stay.
    PackedWeight& packed = results.emplace_back(Quantize(weight, format));
    const at::Tensor ordered = values.index_select(1, factor.order).contiguous();
    if (format.kind == FormatKind::kIntegerGroup) {
      RoundIntegers(values, ordered, factor, options, packed);
    } else {
      RoundCodebook(ordered, factor, options, packed);
    }
  }
  return results;
}

}  // namespace qpruner::engine
