// SPDX-License-Identifier: Apache-2.0
//
// Text for terminals: columns that line up, and numbers that people can read.
// Pure; widths are in bytes, so it suits ASCII.
#ifndef SHUNT_CTL_TABLE_H_
#define SHUNT_CTL_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace shunt::ctl {

class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as there are columns. An empty cell shows as "-".
  void AddRow(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

  // Titles (unless all are empty) and rows, one line each; no spaces at line ends.
  std::string ToText() const;

 private:
  const std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "0 B", "1023 B", "1.0 KiB", "12.3 GiB".
std::string HumaneBytes(uint64_t bytes);

// "4.5s", "3m12s", "5h03m", "2d04h".
std::string HumaneAge(double seconds);

// "1 pod", "3 pods".
std::string Counted(uint64_t count, const std::string& one, const std::string& many);

}  // namespace shunt::ctl

#endif  // SHUNT_CTL_TABLE_H_
