// SPDX-License-Identifier: Apache-2.0
// Random traffic in both directions at once, every byte checked.
#ifndef SHUNT_TESTS_VM_GUEST_STREAM_H_
#define SHUNT_TESTS_VM_GUEST_STREAM_H_

#include <sys/types.h>

#include <cstdint>

namespace guest {

enum Disturbance {
  kPlain,      // send and recv
  kDisturbed,  // now and then also PEEK, WAITALL, FIONREAD, TCP_INFO, SO_RCVLOWAT, OOB-free flags
};

// Two processes, one at each end, that send `bytes` each and then half-close;
// each byte received is checked, and that EOF follows the last one.
class Exchange {
 public:
  Exchange(int a, int b, uint64_t bytes, int disturbance);
  bool Done();    // both have ended
  void Finish();  // waits; fails the test if either end saw anything wrong

 private:
  pid_t ends_[2];
  int status_[2] = {-1, -1};
};

void ExchangeBothWays(int a, int b, uint64_t bytes, int disturbance);

// One second idle, one second between, three probes.
void EnableKeepAlive(int fd);

}  // namespace guest

#endif
