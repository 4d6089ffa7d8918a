// SPDX-License-Identifier: Apache-2.0
#include "ctl/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace shunt::ctl {
namespace {

constexpr char kGap[] = "  ";

}  // namespace

std::string Table::ToText() const {
  std::vector<std::vector<std::string>> lines;
  std::vector<std::string> titles;
  for (const Column& column : columns_) {
    titles.push_back(column.title);
  }
  if (std::any_of(titles.begin(), titles.end(), [](const auto& title) { return !title.empty(); })) {
    lines.push_back(titles);
  }
  for (std::vector<std::string> row : rows_) {
    std::replace(row.begin(), row.end(), std::string(), std::string("-"));
    lines.push_back(std::move(row));
  }

  std::vector<size_t> widths(columns_.size(), 0);
  for (const auto& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) {
      widths[i] = std::max(widths[i], line[i].size());
    }
  }

  std::string text;
  for (const auto& line : lines) {
    std::string out;
    for (size_t i = 0; i < line.size(); ++i) {
      const std::string padding(widths[i] - line[i].size(), ' ');
      absl::StrAppend(&out, i == 0 ? "" : kGap,
                      columns_[i].align == Align::kRight ? padding + line[i] : line[i] + padding);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, out, "\n");
  }
  return text;
}

std::string HumaneBytes(uint64_t bytes) {
  if (bytes < 1024) {
    return absl::StrCat(bytes, " B");
  }
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  // 1023.95 would be printed as 1024.0.
  while (value >= 1023.95 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

std::string HumaneAge(double seconds) {
  if (seconds < 59.95) {  // more would be printed as 60.0
    return absl::StrFormat("%.1fs", seconds);
  }
  const auto whole = static_cast<uint64_t>(seconds + 0.5);
  const uint64_t minutes = whole / 60;
  const uint64_t hours = minutes / 60;
  if (hours == 0) {
    return absl::StrFormat("%dm%02ds", minutes, whole % 60);
  }
  if (hours < 24) {
    return absl::StrFormat("%dh%02dm", hours, minutes % 60);
  }
  return absl::StrFormat("%dd%02dh", hours / 24, hours % 24);
}

std::string Counted(uint64_t count, const std::string& one, const std::string& many) {
  return absl::StrCat(count, " ", count == 1 ? one : many);
}

}  // namespace shunt::ctl
