// SPDX-License-Identifier: Apache-2.0
//
// What a test process does once to the machine around it, so that even a crash
// leaves next to nothing: a mount namespace of its own, and in it a tmpfs for
// every file and a bpffs for every pin of its tests. Both vanish with the
// process, and with the bpffs every program and link pinned there.
//
// test_main.cc holds the main() of gtest programs; any other main() calls the
// first two functions itself. Not thread-safe; used by main thread.
#ifndef SHUNT_TESTS_SUPPORT_ENVIRONMENT_H_
#define SHUNT_TESTS_SUPPORT_ENVIRONMENT_H_

#include <string>

namespace shunt::test {

// Does what is said above; what WhyNotHere() says then.
std::string EnterEnvironment();
void LeaveEnvironment();

// Empty if tests that need a kernel of their own can run here; else why not.
const std::string& WhyNotHere();

// A new empty directory below this process's tmpfs.
std::string MakeTempDir(const std::string& name);

// A new bpffs, mounted in this process's mount namespace only; unmounted, with
// all that is pinned in it, at the end of the object's life.
class PrivateBpffs {
 public:
  PrivateBpffs();
  PrivateBpffs(const PrivateBpffs&) = delete;
  PrivateBpffs& operator=(const PrivateBpffs&) = delete;
  ~PrivateBpffs();

  const std::string& path() const { return path_; }
  void Remount(bool read_only);

 private:
  std::string path_;
};

// The mount point of the first cgroup v2 hierarchy; empty if there is none.
std::string CgroupRoot();

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_ENVIRONMENT_H_
