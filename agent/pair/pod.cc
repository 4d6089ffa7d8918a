// SPDX-License-Identifier: Apache-2.0
#include "agent/pair/pod.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace shunt {

std::string ToString(const PortRange& range) {
  return range.first == range.last ? absl::StrCat(range.first)
                                   : absl::StrCat(range.first, "-", range.last);
}

std::vector<PortRange> Normalized(std::vector<PortRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const PortRange& a, const PortRange& b) {
    return a.first != b.first ? a.first < b.first : a.last < b.last;
  });
  std::vector<PortRange> joined;
  for (const PortRange& range : ranges) {
    if (!joined.empty() && range.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, range.last);
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

std::string ToString(const PodSpec& pod) {
  const std::string ports = absl::StrJoin(
      pod.ports, ",",
      [](std::string* out, const PortRange& range) { absl::StrAppend(out, ToString(range)); });
  std::string text = absl::StrCat("uid=", pod.uid, " cgroup=", pod.cgroup, " ports=", ports);
  if (pod.proxy_uid.has_value()) {
    absl::StrAppend(&text, " proxyUid=", *pod.proxy_uid);
  }
  return text;
}

}  // namespace shunt
