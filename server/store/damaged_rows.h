// Rows whose records cannot be read. A list that serves many jobs passes them over: the others must
// not wait for somebody who mends the store.
#ifndef QPRUNER_SERVER_STORE_DAMAGED_ROWS_H_
#define QPRUNER_SERVER_STORE_DAMAGED_ROWS_H_

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/store/stored_record.h"

namespace qpruner::server {

// Logs that the row is passed over, the first time that this process comes to it. Thread-safe.
void ReportDamagedRow(absl::string_view table, int64_t id, const absl::Status& damage);
// The same of a table whose rows are read by job: its first damaged one stands for all.
void ReportDamagedRowOf(absl::string_view table, int64_t job_id, const absl::Status& damage);

// Appends the message, or passes over a row that holds none.
template <typename Message>
void AppendUnlessDamaged(absl::string_view record, absl::string_view table, int64_t id,
                         std::vector<Message>& messages,
                         absl::Status (*parse)(absl::string_view,
                                               Message&) = &ParseRecord<Message>) {
  const absl::Status parsed = parse(record, messages.emplace_back());
  if (parsed.ok()) return;
  messages.pop_back();
  ReportDamagedRow(table, id, parsed);
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_DAMAGED_ROWS_H_
