// SPDX-License-Identifier: Apache-2.0
//
// Child processes that never outlive the test.
#ifndef SHUNT_TESTS_SUPPORT_COMMAND_H_
#define SHUNT_TESTS_SUPPORT_COMMAND_H_

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/netns.h"
#include "tests/support/stop.h"

namespace shunt::test {

struct CommandResult {
  int exit_code = -1;  // 128 + signal if a signal ended it
  std::string out;
  std::string err;
};

// Runs a program in `netns` (null: the test's own) with `input` as its stdin;
// kills it and stops the test after `patience`.
CommandResult RunCommand(const std::vector<std::string>& arguments,
                         const NetnsToken* netns = nullptr, const std::string& input = "",
                         milliseconds patience = kPatience, const Where& where = Where::Here());

// The same, and stops the test unless it exits 0.
std::string MustRun(const std::vector<std::string>& arguments, const NetnsToken* netns = nullptr,
                    const std::string& input = "", const Where& where = Where::Here());

// One child process; killed and reaped at the end of the object's life. Not
// thread-safe.
class Child {
 public:
  Child() = default;
  // Forks; the child runs `body` and exits with what it returns. `body` must not
  // use gtest. The child dies with the test.
  static Child Fork(const std::function<int()>& body);
  // Forks and executes, output to the given files (appended).
  static Child Spawn(const std::vector<std::string>& arguments, const NetnsToken* netns,
                     const std::string& out_path, const std::string& err_path);

  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  ~Child() { Kill(); }

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // SIGKILL, and reaps.
  void Kill();
  // Empty: still running. Else as CommandResult::exit_code.
  std::optional<int> Poll();
  int Wait(milliseconds patience = kPatience, const Where& where = Where::Here());

 private:
  explicit Child(pid_t pid) : pid_(pid) {}

  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_COMMAND_H_
