// SPDX-License-Identifier: Apache-2.0
//
// The pinned maps, read behind the agent's back: works while no agent runs, and
// is a second witness for what the agent says.
#ifndef SHUNT_TESTS_SUPPORT_KERNEL_STATE_H_
#define SHUNT_TESTS_SUPPORT_KERNEL_STATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "agent/base/unique_fd.h"
#include "agent/pair/exits.h"
#include "kmod/uapi/shunt.h"

namespace shunt::test {

// Opens the pins anew for each question. Thread-safe: no state but the path.
class KernelState {
 public:
  explicit KernelState(std::string bpffs) : maps_(std::move(bpffs) + "/v1/maps/") {}

  bool Exists() const;
  // How often an exit was taken, all CPUs: Count(SHUNT_EXIT_PAIR_MADE).
  uint64_t Count(shunt_exit exit) const;
  // "pair_made=2 redirected=17": all exits that were taken.
  std::string CountsText() const;
  uint64_t RedirectedBytes() const;
  // Entries of a map: "sockets", "ends", "announced".
  uint64_t Entries(const std::string& map) const;
  std::vector<shunt_end> Ends() const;
  // Overwrites the ABI version in the pins.
  void SetAbiVersion(uint32_t version) const;

 private:
  UniqueFd Open(const std::string& map) const;
  ExitCounts Counts() const;

  std::string maps_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_KERNEL_STATE_H_
