// Names of models on a Hugging Face hub.
#ifndef QPRUNER_BASE_HUB_MODEL_H_
#define QPRUNER_BASE_HUB_MODEL_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace qpruner {

// hf://ORGANIZATION/NAME or hf://ORGANIZATION/NAME@REVISION; without a revision: main.
struct HubModel {
  // "organization/name".
  std::string repository;
  // A branch, a tag or a commit.
  std::string revision;

  // INVALID_ARGUMENT: the form that is expected.
  static absl::StatusOr<HubModel> Parse(absl::string_view uri);
};

}  // namespace qpruner

#endif  // QPRUNER_BASE_HUB_MODEL_H_
