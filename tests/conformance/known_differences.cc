// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/known_differences.h"

#include <fnmatch.h>

namespace shunt::conformance {

const std::vector<KnownDifference>& KnownDifferences() {
  static const std::vector<KnownDifference> kList = {
  };
  return kList;
}

bool GlobMatches(const std::string& glob, const std::string& name) {
  return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

const KnownDifference* FindKnownDifference(const std::string& name, const std::string& engine) {
  for (const KnownDifference& known : KnownDifferences()) {
    if (engine == known.engine && GlobMatches(known.case_glob, name)) {
      return &known;
    }
  }
  return nullptr;
}

}  // namespace shunt::conformance
