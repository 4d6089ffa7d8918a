// SPDX-License-Identifier: Apache-2.0
//
// Load whose every byte is checked, to run while something else happens.
#ifndef SHUNT_TESTS_SUPPORT_TRAFFIC_H_
#define SHUNT_TESTS_SUPPORT_TRAFFIC_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/sockets.h"
#include "tests/support/stop.h"

namespace shunt::test {

// Requests and answers on several connections, a thread at each end. Any byte
// that is lost, doubled, out of place or late by more than kPatience, and any
// error, fails the test. Stops at the end of the object's life.
class Traffic {
 public:
  // `connections` outlive this object.
  explicit Traffic(const std::vector<Connection>& connections);
  ~Traffic() { Stop(); }

  void Stop();
  uint64_t rounds() const { return rounds_; }
  // Until every connection has made some more rounds: it is alive.
  void WaitForProgress(const Where& where = Where::Here());

 private:
  void Ask(int fd, size_t index);
  void Answer(int fd, size_t index);

  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> rounds_ = 0;
  std::vector<std::unique_ptr<std::atomic<uint64_t>>> each_;
  std::vector<Worker> workers_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_TRAFFIC_H_
