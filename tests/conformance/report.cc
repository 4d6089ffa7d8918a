// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/report.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <sstream>

#include "nlohmann/json.hpp"

namespace shunt::conformance {
namespace {

using Json = nlohmann::ordered_json;

size_t Count(const Report& report, Result result) {
  return std::count_if(report.rows.begin(), report.rows.end(),
                       [&](const Row& row) { return row.result == result; });
}

std::string Joined(const std::vector<std::string>& parts, const std::string& separator) {
  std::string text;
  for (const std::string& part : parts) {
    text += (text.empty() ? "" : separator) + part;
  }
  return text;
}

std::string ResultText(const Row& row) {
  if (row.result != Result::kDiffers) {
    return ToString(row.result);
  }
  return row.IsDocumented() ? "differs (documented)" : "DIFFERS (new)";
}

// Documented differences of which all rows were run and none differs: perhaps the
// list can be shorter.
std::vector<std::string> Stale(const Report& report) {
  std::vector<std::string> stale;
  for (const KnownDifference& known : KnownDifferences()) {
    bool run = false, differs = false;
    for (const Row& row : report.rows) {
      if (report.engine == known.engine && GlobMatches(known.case_glob, row.FullName())) {
        run = true;
        differs |= row.result == Result::kDiffers;
      }
    }
    if (run && !differs) {
      stale.push_back(known.case_glob);
    }
  }
  return stale;
}

std::string HazardText(const KnownDifference& known) {
  return known.hazard != nullptr ? std::string("docs/hazards.md, row ") + known.hazard
                                 : "not in docs/hazards.md";
}

// Both transcripts as a diff: what only plain TCP says with "-", what only the
// engine's run says with "+".
std::string Difference(const Row& row) {
  const auto &a = row.plain, &b = row.accelerated;
  // Longest common subsequence; transcripts are short.
  std::vector<std::vector<int>> common(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = a.size(); i-- > 0;) {
    for (size_t j = b.size(); j-- > 0;) {
      common[i][j] =
          a[i] == b[j] ? common[i + 1][j + 1] + 1 : std::max(common[i + 1][j], common[i][j + 1]);
    }
  }
  std::string text;
  size_t i = 0, j = 0;
  while (i < a.size() || j < b.size()) {
    if (i < a.size() && j < b.size() && a[i] == b[j]) {
      text += "      " + a[i++] + "\n";
      j++;
    } else if (i < a.size() && (j == b.size() || common[i + 1][j] >= common[i][j + 1])) {
      text += "    - " + a[i++] + "\n";
    } else {
      text += "    + " + b[j++] + "\n";
    }
  }
  return text;
}

std::string Escaped(const std::string& text, bool xml) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '&':
        escaped += "&amp;";
        break;
      case '"':
        escaped += xml ? "&quot;" : "\"";
        break;
      case '|':
        escaped += xml ? "|" : "\\|";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string Hexadecimal(uint64_t value) {
  char text[24];
  snprintf(text, sizeof(text), "%#llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

size_t NewDifferences(const Report& report) {
  return std::count_if(report.rows.begin(), report.rows.end(), [](const Row& row) {
    return row.result == Result::kDiffers && !row.IsDocumented();
  });
}

std::string Summary(const Report& report) {
  const size_t differs = Count(report, Result::kDiffers), fresh = NewDifferences(report);
  std::ostringstream text;
  text << "rows " << report.rows.size() << ", same " << Count(report, Result::kSame) << ", left "
       << Count(report, Result::kLeft) << ", differs " << differs << " (documented "
       << differs - fresh << ", new " << fresh << ")";
  if (!report.skipped.empty()) {
    text << ", SKIPPED " << report.skipped.size();
  }
  return text.str();
}

std::string RowText(const Row& row) {
  char line[256];
  snprintf(line, sizeof(line), "%-52s %-20s %10llu %6.1fs", row.FullName().c_str(),
           ResultText(row).c_str(), static_cast<unsigned long long>(row.handed_over), row.seconds);
  std::string text = line + std::string("\n");
  if (row.result == Result::kDiffers) {
    text += "    " + row.what + "\n";
    if (row.known != nullptr) {
      text += std::string("    users see: ") + row.known->users_see + " (" +
              HazardText(*row.known) + ")\n";
    }
    text += "    plain TCP (-, the commonest of " + std::to_string(row.plain_outcomes) +
            " outcomes in " + std::to_string(row.plain_runs) + " runs) and accelerated (+):\n" +
            Difference(row) + "    kernel side: " + Joined(row.why, " ") + "\n";
  }
  return text;
}

std::string ToTable(const Report& report) {
  char head[256];
  snprintf(head, sizeof(head), "%-52s %-20s %10s %7s\n", "CASE", "RESULT", "HANDED OVER", "TIME");
  std::string text = head;
  for (const Row& row : report.rows) {
    text += RowText(row);
  }
  for (const Skipped& skipped : report.skipped) {
    text += "SKIPPED " + skipped.name + ": " + skipped.why + "\n";
  }
  for (const std::string& glob : Stale(report)) {
    text += "documented, but every row is the same here: " + glob + "\n";
  }
  return text + "\nengine " + report.engine_says + "; kernel " + report.kernel + "; seed " +
         Hexadecimal(report.seed) + "\n" + Summary(report) + "\n";
}

std::string ToJson(const Report& report) {
  Json rows = Json::array();
  for (const Row& row : report.rows) {
    rows.push_back({{"case", row.name},
                    {"family", row.family},
                    {"engine", report.engine},
                    {"result", ToString(row.result)},
                    {"plain", row.plain},
                    {"accelerated", row.accelerated}});
  }
  const Json json = {{"rows", std::move(rows)}, {"seed", report.seed}};
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string ToJunit(const Report& report) {
  std::ostringstream xml;
  xml << "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"shunt-conformance."
      << report.engine << "\" tests=\"" << report.rows.size() + report.skipped.size()
      << "\" failures=\"" << NewDifferences(report) << "\" skipped=\"" << report.skipped.size()
      << "\">\n  <properties><property name=\"seed\" value=\"" << report.seed
      << "\"/></properties>\n";
  for (const Row& row : report.rows) {
    xml << "  <testcase classname=\"" << report.engine << "\" name=\""
        << Escaped(row.FullName(), true) << "\" time=\"" << row.seconds << "\"";
    if (row.result != Result::kDiffers) {
      xml << "/>\n";
      continue;
    }
    const char* element = row.IsDocumented() ? "system-out" : "failure";
    xml << "><" << element << ">" << Escaped(RowText(row), true) << "</" << element
        << "></testcase>\n";
  }
  for (const Skipped& skipped : report.skipped) {
    xml << "  <testcase classname=\"" << report.engine << "\" name=\""
        << Escaped(skipped.name, true) << "\"><skipped message=\"" << Escaped(skipped.why, true)
        << "\"/></testcase>\n";
  }
  xml << "</testsuite>\n";
  return xml.str();
}

std::string ToMarkdown(const Report& report) {
  std::ostringstream text;
  text << "# Conformance\n\n"
          "Generated: `sudo build/bin/shunt-conformance --engine "
       << report.engine << " --output markdown > docs/conformance.md`. Do not edit.\n\n"
       << "Each row is a small program of two ends that ran on plain TCP and on the engine, and "
          "whose\ntranscripts (return values, errno, bytes, order, end of stream, poll masks, "
          "classes of time) were\ncompared. *same*: equal. *left*: equal, and the engine had taken "
          "the connection back to TCP.\n*differs*: users can tell; the second table says how.\n\n"
       << "Kernel " << report.kernel << ", engine " << report.engine_says << ": " << Summary(report)
       << ".\n\n## What differs\n\n";
  std::map<const KnownDifference*, std::vector<std::string>> known;
  std::vector<std::string> fresh;
  for (const Row& row : report.rows) {
    if (row.result == Result::kDiffers) {
      (row.known != nullptr ? known[row.known] : fresh).push_back(row.FullName());
    }
  }
  text << "| rows | what users see | [hazards](hazards.md) |\n|---|---|---|\n";
  for (const KnownDifference& one : KnownDifferences()) {
    if (const auto it = known.find(&one); it != known.end()) {
      const auto all = std::count_if(report.rows.begin(), report.rows.end(), [&](const Row& row) {
        return GlobMatches(one.case_glob, row.FullName());
      });
      text << "| `" << one.case_glob << "`, " << it->second.size() << " of " << all << " | "
           << Escaped(one.users_see, false) << " | "
           << (one.hazard != nullptr ? one.hazard : "**not there yet**") << " |\n";
    }
  }
  for (const std::string& name : fresh) {
    text << "| " << name << " | not understood yet | **not there yet** |\n";
  }
  text << "\n## All rows\n\n| case | what the two programs do | ip | " << report.engine << " on "
       << report.kernel << " |\n|---|---|---|---|\n";
  // One line a case: the families that agree stand together.
  for (size_t i = 0; i < report.rows.size();) {
    const Row& first = report.rows[i];
    std::map<std::string, std::vector<std::string>> by_result;
    for (; i < report.rows.size() && report.rows[i].name == first.name; i++) {
      by_result[ToString(report.rows[i].result)].push_back(report.rows[i].family);
    }
    for (const auto& [result, families] : by_result) {
      text << "| " << first.name << " | " << Escaped(first.what, false) << " | "
           << Joined(families, ", ") << " | " << result << " |\n";
    }
  }
  if (!report.skipped.empty()) {
    text << "\n## Not run on this machine\n\n| case | why |\n|---|---|\n";
    for (const Skipped& skipped : report.skipped) {
      text << "| " << skipped.name << " | " << Escaped(skipped.why, false) << " |\n";
    }
  }
  return text.str();
}

}  // namespace shunt::conformance
