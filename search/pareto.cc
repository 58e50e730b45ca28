#include "search/pareto.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace qpruner::search {

std::vector<size_t> NonDominated(std::span<const Point> points) {
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (points[a].bytes != points[b].bytes) return points[a].bytes < points[b].bytes;
    return points[a].quality < points[b].quality;
  });
  std::vector<size_t> front;
  double best = std::numeric_limits<double>::infinity();
  for (size_t i : order) {
    if (points[i].quality >= best) continue;
    best = points[i].quality;
    front.push_back(i);
  }
  return front;
}

double Hypervolume(std::span<const Point> points, Point reference) {
  double area = 0;
  double ceiling = reference.quality;
  for (size_t i : NonDominated(points)) {
    const Point& point = points[i];
    if (point.bytes >= reference.bytes || point.quality >= ceiling) continue;
    // The strip of qualities that this point adds to those with fewer bytes.
    area += (reference.bytes - point.bytes) * (ceiling - point.quality);
    ceiling = point.quality;
  }
  return area;
}

std::vector<size_t> ParetoFront(std::span<const Trial> trials) {
  std::vector<Point> points;
  std::vector<size_t> positions;
  for (size_t i = 0; i < trials.size(); ++i) {
    if (!HasQuality(trials[i])) continue;
    points.push_back({static_cast<double>(trials[i].bytes), trials[i].quality});
    positions.push_back(i);
  }
  std::vector<size_t> front = NonDominated(points);
  for (size_t& i : front) i = positions[i];
  return front;
}

}  // namespace qpruner::search
