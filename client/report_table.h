// The result of a job as text: what became of size and quality on the way from the original model.
#ifndef QPRUNER_CLIENT_REPORT_TABLE_H_
#define QPRUNER_CLIENT_REPORT_TABLE_H_

#include <string>

#include "client/text_style.h"
#include "qpruner/v1/job.pb.h"

namespace qpruner {

// All are pure functions of their arguments; every line ends in a newline.

// The rows of the report, the budget, the course of fine-tuning, and the report's notes.
std::string FormatReport(const v1::JobReport& report, const TextStyle& style);

// The precision of every group of a trial as a map: a column for each block, a row for each kind of
// group. Empty if the trial has no precisions.
std::string FormatPrecisionMap(const v1::Trial& trial, const TextStyle& style);

// "▇▅▃▂▁" (or "#=-.") of the values, scaled between their smallest and largest.
std::string Sparkline(const std::vector<double>& values, const TextStyle& style);

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_REPORT_TABLE_H_
