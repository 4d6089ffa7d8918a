// SPDX-License-Identifier: Apache-2.0
//
// The one list of rows that may differ. Everything else that differs is new, and
// fails the suite; so does a row below whose hazard is not in docs/hazards.md.
#ifndef SHUNT_TESTS_CONFORMANCE_KNOWN_DIFFERENCES_H_
#define SHUNT_TESTS_CONFORMANCE_KNOWN_DIFFERENCES_H_

#include <string>
#include <vector>

namespace shunt::conformance {

struct KnownDifference {
  const char* case_glob;  // as --case takes it
  const char* engine;
  const char* users_see;  // one line, for docs/conformance.md
  // Row of docs/hazards.md. Null: it is understood but not written down there, so
  // it still counts as new.
  const char* hazard;
};

const std::vector<KnownDifference>& KnownDifferences();

// The first that fits; null if none does. `name` is "send.oob.warm/v4".
const KnownDifference* FindKnownDifference(const std::string& name, const std::string& engine);

bool GlobMatches(const std::string& glob, const std::string& name);

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_KNOWN_DIFFERENCES_H_
