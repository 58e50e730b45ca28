#include "worker/engine/finetune/low_rank.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>

namespace qpruner::engine {
namespace {

// Singular values below this share of the largest are rounding noise of the Gram matrix: its
// eigenvalues are their squares, computed to about 1e-16 of the largest.
constexpr double kSmallestSingularValue = 1e-7;
// Likewise where the products were float32.
constexpr double kSmallestSingularValueFloat = 1e-5;

// Columns of a block beyond the rank, and blocks after the first: see low_rank.h for what they buy.
constexpr int64_t kOversampling = 8;
constexpr int64_t kKrylovSteps = 8;

// Up to this width the exact way is as fast.
constexpr int64_t kSmallSide = 256;

int64_t KrylovColumns(int64_t rank) { return (rank + kOversampling) * (kKrylovSteps + 1); }

// Number of leading singular values (descending, float64) that are more than noise.
int64_t CountDirections(const at::Tensor& singular, int64_t rank, double smallest) {
  int64_t count = std::min<int64_t>(rank, singular.size(0));
  const at::Tensor host = singular.to(at::kCPU).contiguous();
  const double* s = host.data_ptr<double>();
  while (count > 0 && s[count - 1] <= smallest * s[0]) --count;
  return count;
}

at::Tensor Orthonormal(const at::Tensor& columns) { return std::get<0>(at::linalg_qr(columns)); }

}  // namespace

LeadingTriplets LeadingSvdByGram(const at::Tensor& matrix, int64_t rank) {
  at::NoGradGuard no_grad;
  const at::Tensor r = matrix.to(at::kDouble);
  const bool wide = r.size(0) <= r.size(1);
  const at::Tensor gram = wide ? at::matmul(r, r.t()) : at::matmul(r.t(), r);
  const auto [values, vectors] = at::linalg_eigh(gram);  // Ascending.
  const at::Tensor singular = values.flip(0).clamp_min(0).sqrt();
  const int64_t count = CountDirections(singular, rank, kSmallestSingularValue);
  const at::Tensor basis = vectors.flip(1).narrow(1, 0, count);
  const at::Tensor root = singular.narrow(0, 0, count).sqrt();
  if (wide) return {basis * root, at::matmul(basis.t(), r) / root.unsqueeze(1)};
  return {at::matmul(r, basis) / root, (basis * root).t()};
}

LeadingTriplets LeadingSvdByKrylov(const at::Tensor& matrix, int64_t rank, uint64_t seed) {
  at::NoGradGuard no_grad;
  const at::Tensor r = matrix.to(at::kFloat);
  TORCH_CHECK(2 * KrylovColumns(rank) <= std::min(r.size(0), r.size(1)),
              "The Krylov basis of rank ", rank, " is too large for ", r.sizes());
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor start = at::empty({r.size(1), rank + kOversampling}, at::kFloat)
                               .normal_(0, 1, generator)
                               .to(r.device());
  at::Tensor block = Orthonormal(at::matmul(r, start));
  at::Tensor basis = block;  // [rows, columns], orthonormal.
  for (int64_t step = 0; step < kKrylovSteps; ++step) {
    block = at::matmul(r, at::matmul(r.t(), block));
    // Twice is enough (Kahan and Parlett) for columns that are more than rounding; the third is for
    // matrices that have no more directions, whose columns first become noise.
    for (int pass = 0; pass < 3; ++pass) {
      block = Orthonormal(block - at::matmul(basis, at::matmul(basis.t(), block)));
    }
    basis = at::cat({basis, block}, 1);
  }
  // Within the basis: the singular vectors of basis^T R.
  const at::Tensor projected = at::matmul(basis.t(), r).to(at::kDouble);
  const auto [values, vectors] = at::linalg_eigh(at::matmul(projected, projected.t()));
  const at::Tensor singular = values.flip(0).clamp_min(0).sqrt();
  const int64_t count = CountDirections(singular, rank, kSmallestSingularValueFloat);
  const at::Tensor within = vectors.flip(1).narrow(1, 0, count);
  const at::Tensor root = singular.narrow(0, 0, count).sqrt();
  return {at::matmul(basis.to(at::kDouble), within) * root,
          at::matmul(within.t(), projected) / root.unsqueeze(1)};
}

LeadingTriplets LeadingSvd(const at::Tensor& matrix, int64_t rank, uint64_t seed) {
  const int64_t side = std::min(matrix.size(0), matrix.size(1));
  if (side <= kSmallSide || 2 * KrylovColumns(rank) > side) return LeadingSvdByGram(matrix, rank);
  return LeadingSvdByKrylov(matrix, rank, seed);
}

}  // namespace qpruner::engine
