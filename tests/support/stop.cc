// SPDX-License-Identifier: Apache-2.0
#include "tests/support/stop.h"

#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace shunt::test {

void Stop(const Where& where, const std::string& message) {
  ADD_FAILURE_AT(where.file, where.line) << message;
  throw Stopped("stopped there");
}

void StopErrno(const Where& where, const std::string& message, int error) {
  Stop(where, message + ": " + strerror(error) + " (" + ErrnoName(error) + ")");
}

std::string ErrnoName(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "errno " + std::to_string(error);
}

void WaitUntil(const std::string& what, const std::function<bool()>& done, milliseconds patience,
               const Where& where) {
  const Clock::time_point end = Clock::now() + patience;
  while (!done()) {
    if (Clock::now() > end) {
      Stop(where,
           "gave up after " + std::to_string(patience.count()) + " ms waiting until " + what);
    }
    std::this_thread::sleep_for(milliseconds(5));
  }
}

Worker::Worker(std::function<void()> body)
    : thread_([body = std::move(body)] {
        try {
          body();
        } catch (const Stopped&) {
          // Stop() has recorded the failure.
        }
      }) {}

void Worker::Join() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

}  // namespace shunt::test
