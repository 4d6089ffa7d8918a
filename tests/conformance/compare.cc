// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/compare.h"

#include <algorithm>
#include <map>
#include <set>

namespace shunt::conformance {
namespace {

using test::Clock;

// How often plain TCP is run again when the engine shows something new, and for
// how long at most.
constexpr int kSecondThoughts = 40, kSecondThoughtsIfKnown = 4;
constexpr milliseconds kSecondThoughtsEnd{20000};

}  // namespace

std::string ToString(Result result) {
  switch (result) {
    case Result::kSame:
      return "same";
    case Result::kLeft:
      return "left";
    case Result::kDiffers:
      return "differs";
  }
  return "?";
}

Row Compare(Arena& arena, const Case& test, IpMode mode, uint64_t seed, int engine_runs) {
  const Clock::time_point start = Clock::now();
  Row row;
  row.name = test.name;
  row.family = FamilyOf(mode);
  row.what = test.what;
  std::map<std::vector<std::string>, int> plain;
  const KnownDifference* known = FindKnownDifference(row.FullName(), ToString(arena.engine()));
  const auto run_plain = [&] {
    plain[arena.RunPlain(test, mode, seed).lines]++;
    row.plain_runs++;
  };
  for (int i = 0; i < test.plain_runs; i++) {
    run_plain();
  }
  // A case that hangs on TCP proves nothing.
  const bool hangs = std::all_of(plain.begin(), plain.end(), [](const auto& outcome) {
    return std::any_of(outcome.first.begin(), outcome.first.end(), [](const std::string& line) {
      return line.find("TIMED OUT") != std::string::npos;
    });
  });
  if (engine_runs == 0) {
    engine_runs = test.engine_runs;
  }
  int taken_back = 0;
  for (int i = 0; i < engine_runs && row.result != Result::kDiffers; i++) {
    Outcome outcome = arena.RunOnEngine(test, mode, seed);
    if (hangs) {
      outcome.lines.push_back("suite: this case hangs on plain TCP too, so it shows nothing");
    }
    if (arena.engine() != Engine::kNone && test.must_enrol && !outcome.enrolled && !outcome.left) {
      outcome.lines.push_back("suite: the agent did not list this connection as a pair");
    }
    const Clock::time_point end = Clock::now() + kSecondThoughtsEnd;
    const int thoughts = hangs ? 0 : known != nullptr ? kSecondThoughtsIfKnown : kSecondThoughts;
    for (int more = 0; more < thoughts && Clock::now() < end; more++) {
      if (plain.count(outcome.lines) > 0) {
        break;
      }
      run_plain();
    }
    row.handed_over += outcome.handed_over;
    taken_back += outcome.left;
    row.accelerated = outcome.lines;
    row.why = outcome.why;
    if (plain.count(outcome.lines) == 0) {
      row.result = Result::kDiffers;
    }
  }
  if (row.result == Result::kDiffers) {
    row.plain = std::max_element(plain.begin(), plain.end(), [](const auto& a, const auto& b) {
                  return a.second < b.second;
                })->first;
    row.known = known;
  } else {
    row.plain = row.accelerated;
    row.result = taken_back > 0 ? Result::kLeft : Result::kSame;
  }
  row.plain_outcomes = plain.size();
  row.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return row;
}

}  // namespace shunt::conformance
