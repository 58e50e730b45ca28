// Early returns for absl::Status and absl::StatusOr, of the shape that later Abseils ship.
#ifndef QPRUNER_BASE_STATUS_MACROS_H_
#define QPRUNER_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expr` is not OK.
#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status qpruner_status = (expr); !qpruner_status.ok()) { \
      return qpruner_status;                                          \
    }                                                                 \
  } while (false)

// Assigns the value of a StatusOr to `lhs`, or returns its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  QPRUNER_ASSIGN_OR_RETURN_(QPRUNER_CONCAT_(qpruner_or_, __LINE__), lhs, expr)

#define QPRUNER_CONCAT_INNER_(a, b) a##b
#define QPRUNER_CONCAT_(a, b) QPRUNER_CONCAT_INNER_(a, b)
#define QPRUNER_ASSIGN_OR_RETURN_(var, lhs, expr) \
  auto var = (expr);                              \
  if (!var.ok()) return std::move(var).status();  \
  lhs = *std::move(var)

#endif  // QPRUNER_BASE_STATUS_MACROS_H_
