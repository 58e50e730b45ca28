// Opaque page tokens that refuse what the server did not hand out.
#ifndef QPRUNER_SERVER_STORE_PAGE_TOKEN_H_
#define QPRUNER_SERVER_STORE_PAGE_TOKEN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/store/job_store.h"

namespace qpruner::server {

// Says that the next page of `filter` starts after the job of order number `position`. The check
// sum guards against mix-ups (a token of another list, another filter, cut short), not against
// forgery: a forged token shows nothing that its filter does not.
std::string EncodePageToken(const JobFilter& filter, int64_t position);

// Where a page starts: before the job of this order number. `token` is empty for the first page.
// INVALID_ARGUMENT: as StoreReader::ListJobs.
absl::StatusOr<int64_t> StartOfPage(const JobFilter& filter, int page_size,
                                    absl::string_view token);

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_PAGE_TOKEN_H_
