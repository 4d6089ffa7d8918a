// SPDX-License-Identifier: Apache-2.0
#include "tests/support/kernel_state.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <unistd.h>

#include <cerrno>

#include "tests/support/stop.h"

namespace shunt::test {
namespace {

uint64_t SumOverCpus(int map, uint32_t key) {
  std::vector<uint64_t> values(libbpf_num_possible_cpus());
  if (bpf_map_lookup_elem(map, &key, values.data()) != 0) {
    StopErrno(Where::Here(), "reading a counter", errno);
  }
  uint64_t sum = 0;
  for (const uint64_t value : values) {
    sum += value;
  }
  return sum;
}

// Every key of a map that nothing changes meanwhile: while something does,
// some keys may be missed or come twice.
std::vector<shunt_end_key> Keys(int map) {
  std::vector<shunt_end_key> keys;
  shunt_end_key key;
  while (bpf_map_get_next_key(map, keys.empty() ? nullptr : &keys.back(), &key) == 0) {
    keys.push_back(key);
  }
  return keys;
}

}  // namespace

bool KernelState::Exists() const { return access(maps_.c_str(), F_OK) == 0; }

UniqueFd KernelState::Open(const std::string& map) const {
  UniqueFd fd(bpf_obj_get((maps_ + map).c_str()));
  if (!fd.valid()) {
    StopErrno(Where::Here(), "opening pin " + maps_ + map, errno);
  }
  return fd;
}

ExitCounts KernelState::Counts() const {
  const UniqueFd map = Open("exits");
  ExitCounts counts;
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; exit++) {
    counts[exit] = SumOverCpus(map.get(), exit);
  }
  return counts;
}

uint64_t KernelState::Count(shunt_exit exit) const { return Counts()[exit]; }

std::string KernelState::CountsText() const {
  const ExitCounts counts = Counts();
  std::string text;
  for (uint32_t exit = 0; exit < SHUNT_EXIT_COUNT; exit++) {
    if (counts[exit] != 0) {
      text += (text.empty() ? "" : " ") + std::string(ExitReason(exit)) + "=" +
              std::to_string(counts[exit]);
    }
  }
  return text;
}

uint64_t KernelState::RedirectedBytes() const {
  return SumOverCpus(Open("redirected_bytes").get(), 0);
}

uint64_t KernelState::Entries(const std::string& map) const { return Keys(Open(map).get()).size(); }

std::vector<shunt_end> KernelState::Ends() const {
  const UniqueFd map = Open("ends");
  std::vector<shunt_end> ends;
  for (const shunt_end_key& key : Keys(map.get())) {
    shunt_end end;
    if (bpf_map_lookup_elem(map.get(), &key, &end) == 0) {
      ends.push_back(end);
    }
  }
  return ends;
}

void KernelState::SetAbiVersion(uint32_t version) const {
  const UniqueFd map = Open("meta");
  const uint32_t key = 0;
  shunt_meta meta;
  if (bpf_map_lookup_elem(map.get(), &key, &meta) != 0) {
    StopErrno(Where::Here(), "reading meta", errno);
  }
  meta.abi_version = version;
  if (bpf_map_update_elem(map.get(), &key, &meta, BPF_ANY) != 0) {
    StopErrno(Where::Here(), "writing meta", errno);
  }
}

}  // namespace shunt::test
