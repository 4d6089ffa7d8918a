// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/capability.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>
#include <utility>

namespace shunt {
namespace {

// The system calls themselves: they concern this thread alone.
struct Capabilities {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};

  bool Read() { return syscall(SYS_capget, &header, data) == 0; }
  bool Write() { return syscall(SYS_capset, &header, data) == 0; }
};

}  // namespace

bool Holds(int capability) {
  Capabilities own;
  return own.Read() &&
         (own.data[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) != 0;
}

std::vector<std::string> MissingCapabilities() {
  constexpr std::pair<int, const char*> kNeeded[] = {
      {CAP_BPF, "CAP_BPF"}, {CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {CAP_PERFMON, "CAP_PERFMON"}};
  std::vector<std::string> missing;
  for (const auto& [capability, name] : kNeeded) {
    if (!Holds(capability) && !Holds(CAP_SYS_ADMIN)) {
      missing.push_back(name);
    }
  }
  return missing;
}

bool RunWithout(const std::vector<int>& capabilities, const std::function<void()>& work) {
  bool dropped = false;
  std::thread([&] {
    Capabilities own;
    if (!own.Read()) {
      return;
    }
    for (const int capability : capabilities) {
      own.data[CAP_TO_INDEX(capability)].effective &= ~CAP_TO_MASK(capability);
    }
    dropped = own.Write();
    if (dropped) {
      work();
    }
  }).join();
  return dropped;
}

}  // namespace shunt
