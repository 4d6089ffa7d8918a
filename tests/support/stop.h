// SPDX-License-Identifier: Apache-2.0
//
// How tests wait and give up: every wait has an end, and says which line of the
// test waited for what. Thread-safe: no state but gtest's own.
#ifndef SHUNT_TESTS_SUPPORT_STOP_H_
#define SHUNT_TESTS_SUPPORT_STOP_H_

#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>

namespace shunt::test {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// The longest that a single wait may take. Far more than anything needs, even
// with two busy CPUs: only a broken test or product reaches it.
inline constexpr milliseconds kPatience{20000};

// The line of the test that called a helper: the default of a last parameter.
struct Where {
  const char* file;
  int line;

  static Where Here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// What Stop() throws. gtest and Worker catch it; nothing else should.
struct Stopped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Records a failure at `where` and ends the test, or the Worker.
[[noreturn]] void Stop(const Where& where, const std::string& message);
// "message: Broken pipe (EPIPE)"
[[noreturn]] void StopErrno(const Where& where, const std::string& message, int error);

// "EPIPE"; "errno 4711" if it has no name.
std::string ErrnoName(int error);

// Looks until `done` says true; stops with "gave up waiting until <what>".
void WaitUntil(const std::string& what, const std::function<bool()>& done,
               milliseconds patience = kPatience, const Where& where = Where::Here());

// A thread of a test. A Stop() inside ends that thread only, and fails the
// test. The destructor joins, so `body` must use bounded waits only.
class Worker {
 public:
  explicit Worker(std::function<void()> body);
  Worker(Worker&&) = default;
  Worker& operator=(Worker&&) = delete;
  ~Worker() { Join(); }

  void Join();

 private:
  std::thread thread_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_STOP_H_
