// SPDX-License-Identifier: Apache-2.0
#include "agent/base/status.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace shunt {

absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok() || context.empty()) {
    return status;
  }
  return absl::Status(status.code(), absl::StrCat(std::string(context), ": ", status.message()));
}

absl::Status ErrnoStatus(int error, std::string_view context) {
  const int code = std::abs(error);
  return absl::Status(absl::ErrnoToStatusCode(code),
                      absl::StrCat(std::string(context), ": ", std::strerror(code)));
}

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kNotFound:
      return 2;
    default:
      return 1;
  }
}

}  // namespace shunt
