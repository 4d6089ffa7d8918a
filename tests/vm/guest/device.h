// SPDX-License-Identifier: Apache-2.0
// /dev/shunt, and the module itself.
#ifndef SHUNT_TESTS_VM_GUEST_DEVICE_H_
#define SHUNT_TESTS_VM_GUEST_DEVICE_H_

#include <cstdint>
#include <vector>

#include "uapi/shunt.h"

namespace guest {

bool LoadModule();
bool UnloadModule();  // errno says why not

// One open file of the device: an owner.
class Device {
 public:
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Joins two sockets of this process. 0 and the pair's id, or an errno.
  int Pair(int client, int server, uint64_t* id = nullptr);
  // The same, asking again while bytes are on the way.
  void MustPair(int client, int server, uint64_t* id = nullptr);
  int Unpair(uint64_t id);
  void SetPolicy(uint32_t policy);
  std::vector<shunt_kmod_record> List();
  uint64_t Counter(shunt_kmod_exit exit);
  int fd() const { return fd_; }

 private:
  int fd_;
};

// The request that names two sockets of this process.
shunt_kmod_pair RequestFor(int client, int server);

}  // namespace guest

#endif
