// SPDX-License-Identifier: Apache-2.0
//
// A pod without Kubernetes: a network namespace and a cgroup v2 directory. A
// socket belongs to the cgroup and the namespace of the process that makes it,
// whoever uses it later: so each container here is a small process that makes
// sockets and passes them to the test, which then holds both ends of every
// connection in one place.
#ifndef SHUNT_TESTS_SUPPORT_POD_H_
#define SHUNT_TESTS_SUPPORT_POD_H_

#include <memory>
#include <string>

#include "agent/base/unique_fd.h"
#include "tests/support/command.h"
#include "tests/support/netns.h"
#include "tests/support/stop.h"

namespace shunt::test {

// A process in a cgroup and a namespace. Killed at the end of the object's
// life. Not thread-safe.
class Container {
 public:
  Container(const NetnsToken& netns, const std::string& cgroup);

  // A socket of this container: SOCK_STREAM, blocking, close-on-exec.
  UniqueFd Socket(int family, const Where& where = Where::Here());

  pid_t pid() const { return process_.pid(); }

 private:
  UniqueFd control_;
  Child process_;
};

// Removes its cgroup, with every process in it, at the end of its life. Not
// thread-safe.
class Pod {
 public:
  // `netns` null: a fresh one. Another pod's: two cgroups that share a network.
  explicit Pod(std::shared_ptr<NetnsToken> netns = nullptr);
  Pod(const Pod&) = delete;
  Pod& operator=(const Pod&) = delete;
  ~Pod();

  const std::shared_ptr<NetnsToken>& netns() const { return netns_; }
  const std::string& cgroup() const { return cgroup_; }

  // A container in the pod's own cgroup.
  Container& container() { return *container_; }
  UniqueFd Socket(int family, const Where& where = Where::Here()) {
    return container_->Socket(family, where);
  }

  // A container in a cgroup of its own below the pod's, as kubelets make them.
  std::unique_ptr<Container> AddContainer(const std::string& name);

  // Ends every process of the pod and removes its cgroup, as kubelets do.
  void RemoveCgroup();
  // A cgroup with the same path again, and a container in it.
  void RecreateCgroup();

 private:
  std::shared_ptr<NetnsToken> netns_;
  std::string cgroup_;
  std::unique_ptr<Container> container_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_POD_H_
