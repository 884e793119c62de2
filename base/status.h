// Macros that pass an absl::Status up to the caller.
#ifndef GOLDFINCH_BASE_STATUS_H_
#define GOLDFINCH_BASE_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expression` is not OK.
#define GF_RETURN_IF_ERROR(expression)                              \
  do {                                                              \
    if (absl::Status gf_status_ = (expression); !gf_status_.ok()) { \
      return gf_status_;                                            \
    }                                                               \
  } while (false)

#define GF_STATUS_CONCAT_INNER_(a, b) a##b
#define GF_STATUS_CONCAT_(a, b) GF_STATUS_CONCAT_INNER_(a, b)

// `GF_ASSIGN_OR_RETURN(auto value, Expression());` where Expression returns absl::StatusOr.
#define GF_ASSIGN_OR_RETURN(declaration, expression) \
  GF_ASSIGN_OR_RETURN_INNER_(GF_STATUS_CONCAT_(gf_statusor_, __LINE__), declaration, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot be in parentheses.
#define GF_ASSIGN_OR_RETURN_INNER_(name, declaration, expression) \
  auto name = (expression);                                       \
  if (!name.ok()) return name.status();                           \
  declaration = *std::move(name)
// NOLINTEND(bugprone-macro-parentheses)

#endif  // GOLDFINCH_BASE_STATUS_H_
