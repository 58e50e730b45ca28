// How much a trial is expected to improve a Pareto front. Pure functions.
#ifndef QPRUNER_SEARCH_ACQUISITION_H_
#define QPRUNER_SEARCH_ACQUISITION_H_

#include <span>
#include <vector>

#include "search/pareto.h"

namespace qpruner::search {

// E[max(ceiling - Y, 0)] for Y ~ N(mean, stddev^2): expected improvement (Jones, Schonlau, Welch
// 1998, eq. 15).
double ExpectedImprovement(double ceiling, double mean, double stddev);

// Expected hypervolume improvement over (bytes, quality), both minimised, where bytes are known.
//
// A point (c, y) adds, for each byte count t in [c, reference.bytes), the height max(f(t) - y, 0),
// f(t) being the best quality on the front within t bytes, at most reference.quality. f is a
// staircase, so the expectation over a normal y is a sum of expected improvements, one a step:
// the two-dimensional EHVI (Emmerich, Deutz, Klinkenberg 2011) with one deterministic coordinate.
class FrontImprovement {
 public:
  // `points` need not be non-dominated; those beyond the reference are ignored.
  FrontImprovement(std::span<const Point> points, Point reference);

  double Expected(double bytes, double mean, double stddev) const;

 private:
  struct Step {
    double begin, end;  // Bytes.
    double ceiling;     // f on [begin, end).
  };
  std::vector<Step> steps_;  // Adjacent, from -infinity to reference.bytes.
};

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_ACQUISITION_H_
