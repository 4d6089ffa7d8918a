// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/case.h"
namespace shunt::conformance {
Cases ProgramCases() { return {}; }
}  // namespace shunt::conformance
