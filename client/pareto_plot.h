// The trials of a job as a picture for the terminal: quality, on a logarithmic axis, against size.
#ifndef QPRUNER_CLIENT_PARETO_PLOT_H_
#define QPRUNER_CLIENT_PARETO_PLOT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/text_style.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

struct ParetoPlotOptions {
  TextStyle style;
  // Rows between the axes.
  int rows = 16;
  // Drawn as a line, where it falls within the picture or near it.
  std::optional<int64_t> budget_bytes;
};

// A pure function of its arguments; every line ends in a newline. Shows the front as a staircase
// (what lies above and right of it is dominated), the chosen point, uniform trials, dominated
// trials, the budget, axes and a legend of what is there.
std::string PlotParetoFront(const v1::ParetoFront& front, const std::vector<v1::Trial>& trials,
                            const ParetoPlotOptions& options);

// The budget a job's spec states in bytes, or that its report worked out; none for one in bits that
// is not yet known in bytes.
std::optional<int64_t> BudgetBytes(const v1::CompressionJob& job);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_PARETO_PLOT_H_
