// SPDX-License-Identifier: Apache-2.0
#include <iterator>
#include <utility>

#include "tests/conformance/case.h"

namespace shunt::conformance {

std::string FamilyOf(IpMode mode) {
  return mode == IpMode::kMixed ? "v4-to-dual" : test::ToString(mode);
}

Cases AllCases() {
  Cases all;
  for (const auto& cases : {SendCases, ReceiveCases, SpliceCases, PollCases, EndingCases,
                            OptionsCases, ReuseCases, SharingCases, BuffersCases, HandshakeCases,
                            UringCases, TimingCases, BulkCases, ProgramCases}) {
    for (Case& one : cases()) {
      if (one.start != Start::kBoth) {
        all.push_back(std::move(one));
        continue;
      }
      Case warm = one;
      one.name += ".cold";
      one.start = Start::kCold;
      warm.name += ".warm";
      warm.start = Start::kWarm;
      all.push_back(std::move(one));
      all.push_back(std::move(warm));
    }
  }
  return all;
}

}  // namespace shunt::conformance
