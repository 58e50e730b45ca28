// Pareto fronts over (bytes, quality), both to be minimised. Pure functions.
#ifndef QPRUNER_SEARCH_PARETO_H_
#define QPRUNER_SEARCH_PARETO_H_

#include <cstddef>
#include <span>
#include <vector>

#include "search/trial.h"

namespace qpruner::search {

struct Point {
  double bytes = 0;
  double quality = 0;
};

// Positions of the points that no other point dominates (no worse in both, better in one), by
// growing bytes and thus falling quality value. Of equal points the first stays.
std::vector<size_t> NonDominated(std::span<const Point> points);

// Area that the points dominate, up to `reference`. Points beyond the reference in either direction
// add nothing.
double Hypervolume(std::span<const Point> points, Point reference);

// Positions of the measured trials that no other measured trial dominates, by growing bytes.
std::vector<size_t> ParetoFront(std::span<const Trial> trials);

}  // namespace qpruner::search

#endif  // QPRUNER_SEARCH_PARETO_H_
