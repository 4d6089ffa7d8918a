// SPDX-License-Identifier: Apache-2.0
//
// What is wanted: the pods of this node and which of their server ports to
// accelerate. Plain values, comparable; whole sets are passed around, and
// absence from a set means removal.
#ifndef SHUNT_AGENT_PAIR_POD_H_
#define SHUNT_AGENT_PAIR_POD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace shunt {

// Inclusive, host byte order, 1 <= first <= last.
struct PortRange {
  uint16_t first = 0;
  uint16_t last = 0;

  friend bool operator==(const PortRange& a, const PortRange& b) {
    return a.first == b.first && a.last == b.last;
  }
};

// "8080" or "30000-60000".
std::string ToString(const PortRange& range);

struct PodSpec {
  std::string uid;                    // unique on the node; names pins
  std::string cgroup;                 // absolute cgroup v2 directory; empty: find *pod<uid>*
  std::vector<PortRange> ports;       // server ports after NAT; at most SHUNT_MAX_PORT_RANGES
  std::optional<uint32_t> proxy_uid;  // tells proxy from app in what is shown

  friend bool operator==(const PodSpec& a, const PodSpec& b) {
    return a.uid == b.uid && a.cgroup == b.cgroup && a.ports == b.ports &&
           a.proxy_uid == b.proxy_uid;
  }
};

// Sorted by first port, overlapping and adjacent ranges joined: the form in
// which two policies are compared and written to the kernel.
std::vector<PortRange> Normalized(std::vector<PortRange> ranges);

// "uid=demo cgroup=/… ports=8080,15001", for logs and test failures.
std::string ToString(const PodSpec& pod);

}  // namespace shunt

#endif  // SHUNT_AGENT_PAIR_POD_H_
