#include "server/store/damaged_rows.h"

#include <mutex>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace qpruner::server {
namespace {

// More need not be told apart to be looked into.
constexpr size_t kMaxTold = 1000;

void ReportOnce(const std::string& row, const absl::Status& damage) {
  // The standard library's lock, whose order the thread sanitizer sees without help.
  static std::mutex mutex;
  static std::set<std::string>* const told = new std::set<std::string>;
  {
    std::lock_guard lock(mutex);
    if (told->size() >= kMaxTold || !told->insert(row).second) return;
  }
  spdlog::error("{} is passed over: {}", row, std::string(damage.message()));
}

}  // namespace

void ReportDamagedRow(absl::string_view table, int64_t id, const absl::Status& damage) {
  ReportOnce(absl::StrCat("row ", id, " of table ", table), damage);
}

void ReportDamagedRowOf(absl::string_view table, int64_t job_id, const absl::Status& damage) {
  ReportOnce(absl::StrCat("a row of job_id ", job_id, " of table ", table), damage);
}

}  // namespace qpruner::server
