#include "server/store/damaged_rows.h"

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// More need not be told apart to be looked into.
constexpr size_t kMaxTold = 1000;

}  // namespace

void ReportDamagedRow(absl::string_view table, int64_t id, const absl::Status& damage) {
  // The standard library's lock, whose order the thread sanitizer sees without help.
  static std::mutex mutex;
  static std::set<std::pair<std::string, int64_t>>* const told =
      new std::set<std::pair<std::string, int64_t>>;
  {
    std::lock_guard lock(mutex);
    if (told->size() >= kMaxTold || !told->emplace(std::string(table), id).second) return;
  }
  spdlog::error("row {} of table {} is passed over: {}", id, std::string(table),
                std::string(damage.message()));
}

}  // namespace qpruner::server
