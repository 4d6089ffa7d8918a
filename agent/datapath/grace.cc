// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/grace.h"

#include <utility>

namespace shunt {

Grace::Grace(std::function<void()> await) : await_(std::move(await)), thread_([this] { Run(); }) {}

Grace::~Grace() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  asked_for_.notify_one();
  thread_.join();
}

Grace::Ticket Grace::Ask() {
  std::lock_guard<std::mutex> lock(mutex_);
  asked_for_.notify_one();
  return ++asked_;
}

bool Grace::Passed(Ticket ticket) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return passed_ >= ticket;
}

void Grace::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    asked_for_.wait(lock, [this] { return stop_ || passed_ < asked_; });
    if (stop_) {
      return;
    }
    const Ticket served = asked_;
    lock.unlock();
    await_();
    lock.lock();
    passed_ = served;
  }
}

}  // namespace shunt
