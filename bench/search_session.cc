// The search library over standard input and output, for comparisons in other languages
// (bench/search_compare.py). One JSON a line. First in: {"algorithm", "max_trials", "seed",
// "budget_bytes" (optional), "space": {"fixed_bytes", "base_quality", "groups": [{"name",
// "parameter_count", "mutual_information", "choices": [{"bits", "bytes", "sensitivity"}]}]}}. Then,
// until the search is over: out {"assignment", "origin", "milliseconds"}, in a quality.
#include <chrono>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "search/optimizer.h"

namespace {

using nlohmann::json;
using namespace qpruner::search;  // NOLINT: a small program.

SearchSpace ReadSpace(const json& in) {
  SearchSpace space{.fixed_bytes = in["fixed_bytes"], .base_quality = in["base_quality"]};
  for (const json& g : in["groups"]) {
    Group group{.name = g["name"],
                .parameter_count = g["parameter_count"],
                .mutual_information = g["mutual_information"]};
    for (const json& c : g["choices"]) {
      group.choices.push_back(
          {.bits = c["bits"], .bytes = c["bytes"], .sensitivity = c["sensitivity"]});
    }
    space.groups.push_back(std::move(group));
  }
  return space;
}

}  // namespace

int main() {
  std::string line;
  std::getline(std::cin, line);
  const json problem = json::parse(line);
  const std::map<std::string, Algorithm> algorithms = {
      {"uniform", Algorithm::UNIFORM},
      {"random", Algorithm::RANDOM},
      {"mutual-information", Algorithm::MUTUAL_INFORMATION},
      {"sensitivity-lp", Algorithm::SENSITIVITY_LP},
      {"bayesian", Algorithm::BAYESIAN}};
  const SearchSpace space = ReadSpace(problem["space"]);
  Options options{.seed = problem["seed"], .max_trials = problem["max_trials"]};
  if (problem.contains("budget_bytes")) options.budget_bytes = problem["budget_bytes"];
  const auto optimizer =
      MakeOptimizer(algorithms.at(problem["algorithm"].get<std::string>()), space, options);
  if (!optimizer.ok()) {
    std::cerr << optimizer.status() << "\n";
    return 1;
  }
  std::vector<Trial> history;
  while (true) {
    const int index = static_cast<int>(history.size()) + 1;
    const auto start = std::chrono::steady_clock::now();
    const auto proposal = (*optimizer)->Propose(history, index);
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    if (!proposal.ok()) return 0;
    std::cout << json{{"assignment", proposal->assignment},
                      {"origin", proposal->origin},
                      {"milliseconds", took.count()}}
              << std::endl;
    if (!std::getline(std::cin, line)) return 0;
    history.push_back({.index = index,
                       .assignment = proposal->assignment,
                       .state = TrialState::MEASURED,
                       .quality = std::stod(line),
                       .bytes = TotalBytes(space, proposal->assignment)});
  }
}
