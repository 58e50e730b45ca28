#include "search/acquisition.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace qpruner::search {

double ExpectedImprovement(double ceiling, double mean, double stddev) {
  const double gain = ceiling - mean;
  if (!(stddev > 0)) return std::max(gain, 0.0);
  const double z = gain / stddev;
  // Below this the value is less than 1e-17 stddev and the difference of the two terms is noise.
  if (z < -8) return 0;
  const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
  const double probability = 0.5 * std::erfc(-z / std::numbers::sqrt2);
  return std::max(gain * probability + stddev * density, 0.0);
}

FrontImprovement::FrontImprovement(std::span<const Point> points, Point reference) {
  Step step{.begin = -std::numeric_limits<double>::infinity(), .ceiling = reference.quality};
  for (size_t i : NonDominated(points)) {
    const Point& point = points[i];
    if (point.bytes >= reference.bytes || point.quality >= step.ceiling) continue;
    step.end = point.bytes;
    steps_.push_back(step);
    step = {.begin = point.bytes, .ceiling = point.quality};
  }
  step.end = reference.bytes;
  steps_.push_back(step);
}

double FrontImprovement::Expected(double bytes, double mean, double stddev) const {
  double total = 0;
  for (auto step = steps_.rbegin(); step != steps_.rend() && step->end > bytes; ++step) {
    const double width = step->end - std::max(step->begin, bytes);
    total += width * ExpectedImprovement(step->ceiling, mean, stddev);
  }
  return total;
}

}  // namespace qpruner::search
