// SPDX-License-Identifier: Apache-2.0
//
// A network namespace of its own, loopback up, kept alive by a descriptor only:
// it has no name, so nothing is left behind.
#ifndef SHUNT_TESTS_SUPPORT_NETNS_H_
#define SHUNT_TESTS_SUPPORT_NETNS_H_

#include <functional>
#include <string>

#include "agent/base/unique_fd.h"

namespace shunt::test {

// Thread-safe after construction.
class NetnsToken {
 public:
  NetnsToken();

  int fd() const { return fd_.get(); }

  // Runs `body` inside, on a thread of its own, and waits for it.
  void Run(const std::function<void()>& body) const;

  // For a child after fork(): enters for good. False on failure.
  bool Enter() const;

  // "net.ipv4.tcp_fastopen", "3"
  void SetSysctl(const std::string& name, const std::string& value) const;

 private:
  UniqueFd fd_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_NETNS_H_
