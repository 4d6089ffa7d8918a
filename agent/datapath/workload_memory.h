// SPDX-License-Identifier: Apache-2.0
//
// What has been learnt of workloads, in a file: so that a pod whose pins are gone
// (drain, another ABI version) need not be watched anew, and a pod that runs the
// same programs as one that was found hazardous is known by them.
//
// The file is JSON, replaced by rename. A file that is missing or cannot be read
// is no memory: logged, and everything is learnt again. Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_WORKLOAD_MEMORY_H_
#define SHUNT_AGENT_DATAPATH_WORKLOAD_MEMORY_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "kmod/uapi/shunt.h"

namespace shunt {

struct KnownWorkload {
  std::string pod_uid;
  uint16_t port = 0;     // the server's
  uint32_t hazards = 0;  // enum shunt_hazard; 0: clean
  // Task names at the two ends; empty if they were not seen.
  std::string client;
  std::string server;

  friend bool operator==(const KnownWorkload& a, const KnownWorkload& b) {
    return a.pod_uid == b.pod_uid && a.port == b.port && a.hazards == b.hazards &&
           a.client == b.client && a.server == b.server;
  }
};

class WorkloadMemory {
 public:
  // `path` empty: remembers nothing beyond this object's life.
  explicit WorkloadMemory(std::string path);

  // Of this pod.
  std::vector<KnownWorkload> OfPod(const std::string& pod_uid) const;
  // Hazards of the same programs at the same port in any pod; 0 if none is known.
  uint32_t HazardsOf(uint16_t port, const std::string& client, const std::string& server) const;

  // Replaces what was known of this port of this pod. The oldest of more than
  // kRemembered is forgotten.
  void Remember(const KnownWorkload& workload);

  static constexpr size_t kRemembered = 4096;

 private:
  void Load();
  void Save() const;

  const std::string path_;
  std::deque<KnownWorkload> known_;  // oldest first
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_WORKLOAD_MEMORY_H_
