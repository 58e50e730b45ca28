// The best low-rank part of a matrix, for LoftQ.
#ifndef QPRUNER_WORKER_ENGINE_FINETUNE_LOW_RANK_H_
#define QPRUNER_WORKER_ENGINE_FINETUNE_LOW_RANK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace qpruner::engine {

// R ~ U S V^T by its leading singular triplets.
struct LeadingTriplets {
  at::Tensor left;   // [rows, n]: U sqrt(S), float64
  at::Tensor right;  // [n, cols]: sqrt(S) V^T, float64
};

// At most `rank` triplets, fewer if the matrix has fewer directions.
//
// Small matrices: exactly, by the eigenvectors of the smaller Gram matrix in float64. Large ones:
// by a block Krylov space (Musco and Musco 2015, arXiv 1504.05477, algorithm 2) started from
// `seed`, because full decompositions grow with the cube of the width (minutes a linear at 4096)
// and a quantization error is close to white noise, the case where plain subspace iteration is
// slowest. On white noise at rank 8 it captures 99.5 % or more of the exact triplets' energy, which
// is itself a small share: the error that is left differs from the exact one's by less than 1e-4 of
// it.
LeadingTriplets LeadingSvd(const at::Tensor& matrix, int64_t rank, uint64_t seed);

// The two methods, for tests and benchmarks. The Krylov basis must fit: rank + 8 columns, nine
// times, at most half of the smaller side.
LeadingTriplets LeadingSvdByGram(const at::Tensor& matrix, int64_t rank);
LeadingTriplets LeadingSvdByKrylov(const at::Tensor& matrix, int64_t rank, uint64_t seed);

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_FINETUNE_LOW_RANK_H_
