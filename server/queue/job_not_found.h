// What every call about an absent job is answered.
#ifndef QPRUNER_SERVER_QUEUE_JOB_NOT_FOUND_H_
#define QPRUNER_SERVER_QUEUE_JOB_NOT_FOUND_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "proto/status_codec.h"

namespace qpruner::server {

inline absl::Status JobNotFound(const JobName& name) {
  return WithErrorInfo(absl::NotFoundError(absl::StrCat("Job not found: ", name.ToString())),
                       "JOB_NOT_FOUND", {{"job", name.ToString()}});
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_QUEUE_JOB_NOT_FOUND_H_
