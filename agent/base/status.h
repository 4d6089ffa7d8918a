// SPDX-License-Identifier: Apache-2.0
//
// Errors read outer to inner: action, object, cause; and end with what to do.
// Thread-safe: no state.
#ifndef SHUNT_AGENT_BASE_STATUS_H_
#define SHUNT_AGENT_BASE_STATUS_H_

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace shunt {

// The same code with "context: " in front of the message. OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// "context: <text of error>", with a code that suits the errno. `error` is a
// positive errno; a negative one (libbpf) is taken as its absolute value.
absl::Status ErrnoStatus(int error, std::string_view context);

// The exit code of a program that ends on `status`: 0 for OK, 2 for bad input
// (INVALID_ARGUMENT, FAILED_PRECONDITION, ALREADY_EXISTS, PERMISSION_DENIED,
// NOT_FOUND), 1 for anything else.
int ExitCode(const absl::Status& status);

}  // namespace shunt

#define SHUNT_CONCAT_INNER(a, b) a##b
#define SHUNT_CONCAT(a, b) SHUNT_CONCAT_INNER(a, b)

// Returns from the enclosing function with the annotated status unless OK.
#define SHUNT_RETURN_IF_ERROR(expression, context)                      \
  do {                                                                  \
    if (absl::Status shunt_status = (expression); !shunt_status.ok()) { \
      return ::shunt::Annotate(shunt_status, context);                  \
    }                                                                   \
  } while (false)

// SHUNT_ASSIGN_OR_RETURN(auto fd, Open(path), absl::StrCat("opening ", path));
#define SHUNT_ASSIGN_OR_RETURN(target, expression, context) \
  SHUNT_ASSIGN_OR_RETURN_INNER(SHUNT_CONCAT(shunt_or_, __LINE__), target, expression, context)
#define SHUNT_ASSIGN_OR_RETURN_INNER(holder, target, expression, context) \
  auto holder = (expression);                                             \
  if (!holder.ok()) {                                                     \
    return ::shunt::Annotate(holder.status(), context);                   \
  }                                                                       \
  target = std::move(holder).value()

#endif  // SHUNT_AGENT_BASE_STATUS_H_
