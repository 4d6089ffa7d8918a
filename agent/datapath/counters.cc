// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/counters.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <numeric>

#include "agent/base/status.h"

namespace shunt {

absl::StatusOr<uint64_t> ReadExitCounter(int fd, uint32_t exit) {
  std::vector<uint64_t> values(static_cast<size_t>(libbpf_num_possible_cpus()));
  if (bpf_map_lookup_elem(fd, &exit, values.data()) != 0) {
    return ErrnoStatus(errno, "reading exits map");
  }
  return std::accumulate(values.begin(), values.end(), uint64_t{0});
}

absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloadMap(int fd) {
  std::vector<WorkloadRecord> records;
  shunt_workload_key key;
  const shunt_workload_key* last = nullptr;
  while (bpf_map_get_next_key(fd, last, &key) == 0) {
    shunt_workload workload = {};
    // One that goes meanwhile is not there to be read.
    if (bpf_map_lookup_elem(fd, &key, &workload) == 0) {
      records.push_back({key, workload});
    }
    last = &key;
  }
  if (errno != ENOENT) {
    return ErrnoStatus(errno, "reading workloads map");
  }
  return records;
}

}  // namespace shunt
