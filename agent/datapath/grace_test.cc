// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/grace.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "gtest/gtest.h"

namespace shunt {
namespace {

// Grace periods that the test ends.
class Periods {
 public:
  void Await() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++begun_;
    changed_.notify_all();
    const int mine = begun_;
    changed_.wait(lock, [&] { return ended_ >= mine; });
  }
  void WaitBegun(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return begun_ >= count; });
  }
  void End() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++ended_;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int begun_ = 0;
  int ended_ = 0;
};

void WaitPassed(const Grace& grace, Grace::Ticket ticket) {
  while (!grace.Passed(ticket)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(Grace, WhatIsAskedForDuringAPeriodNeedsTheNext) {
  Periods periods;
  Grace grace([&] { periods.Await(); });
  const Grace::Ticket first = grace.Ask();
  periods.WaitBegun(1);
  const Grace::Ticket second = grace.Ask();
  const Grace::Ticket third = grace.Ask();
  EXPECT_FALSE(grace.Passed(first));
  periods.End();
  WaitPassed(grace, first);
  EXPECT_FALSE(grace.Passed(second));
  periods.WaitBegun(2);
  periods.End();
  WaitPassed(grace, third);
  EXPECT_TRUE(grace.Passed(second));
}

TEST(Grace, EndsWithoutHavingBeenAsked) {
  Grace grace([] { FAIL(); });
}

}  // namespace
}  // namespace shunt
