// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/mounts.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace shunt {

std::string MountIn(const std::string& mountinfo, const std::string& type) {
  constexpr size_t kMountPoint = 4;
  for (const absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ');
    // Optional fields end with a dash; the type follows.
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() > kMountPoint && fields.end() - dash > 1 && *(dash + 1) == type) {
      return absl::StrReplaceAll(
          fields[kMountPoint], {{"\\040", " "}, {"\\011", "\t"}, {"\\012", "\n"}, {"\\134", "\\"}});
    }
  }
  return "";
}

std::string MountOf(const std::string& type) {
  std::ifstream file("/proc/self/mountinfo");
  std::ostringstream text;
  text << file.rdbuf();
  return MountIn(text.str(), type);
}

}  // namespace shunt
