// SPDX-License-Identifier: Apache-2.0
//
// One case on both sides, and the judgement. What TCP itself does differently
// from run to run is learned by running it: any outcome that plain TCP showed is
// right.
#ifndef SHUNT_TESTS_CONFORMANCE_COMPARE_H_
#define SHUNT_TESTS_CONFORMANCE_COMPARE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/conformance/arena.h"
#include "tests/conformance/case.h"
#include "tests/conformance/known_differences.h"

namespace shunt::conformance {

enum class Result {
  kSame,
  kLeft,     // the same, and by the end the engine had taken the connection back to TCP
  kDiffers,  // no run on plain TCP looked like one of the engine's
};
std::string ToString(Result result);

struct Row {
  std::string name;    // "receive.waitall.warm"
  std::string family;  // "v4"
  std::string what;
  Result result = Result::kSame;
  // The engine's run that decided, and the run on plain TCP that it equals or,
  // if it differs, the commonest.
  std::vector<std::string> plain;
  std::vector<std::string> accelerated;
  size_t plain_outcomes = 0;  // how many different ones TCP showed
  size_t plain_runs = 0;
  uint64_t handed_over = 0;  // bytes that went past TCP, of all runs
  std::vector<std::string> why;
  const KnownDifference* known = nullptr;  // set if it differs and the list says how
  double seconds = 0;

  bool IsDocumented() const { return known != nullptr && known->hazard != nullptr; }
  std::string FullName() const { return name + "/" + family; }
};

// `engine_runs`: 0 for what the case says.
Row Compare(Arena& arena, const Case& test, IpMode mode, uint64_t seed, int engine_runs);

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_COMPARE_H_
