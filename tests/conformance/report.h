// SPDX-License-Identifier: Apache-2.0
//
// The rows, for people and for programs. Pure.
#ifndef SHUNT_TESTS_CONFORMANCE_REPORT_H_
#define SHUNT_TESTS_CONFORMANCE_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/conformance/compare.h"

namespace shunt::conformance {

struct Skipped {
  std::string name;
  std::string why;
};

struct Report {
  std::string engine;       // "sockhash"
  std::string engine_says;  // "sockhash: all probes passed"
  std::string kernel;       // uname -r
  uint64_t seed = 0;
  std::vector<Row> rows;
  std::vector<Skipped> skipped;
};

// Those that make the suite fail.
size_t NewDifferences(const Report& report);
// "rows 120, same 100, left 3, differs 17 (documented 17, new 0)"
std::string Summary(const Report& report);
// One line of the table; a row that differs brings both transcripts.
std::string RowText(const Row& row);

std::string ToTable(const Report& report);
std::string ToJson(const Report& report);
std::string ToJunit(const Report& report);
std::string ToMarkdown(const Report& report);

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_REPORT_H_
