// SPDX-License-Identifier: Apache-2.0
//
// Finds a pod's cgroup v2 directory. Thread-safe after construction.
#ifndef SHUNT_AGENT_RESOLVE_CGROUP_RESOLVER_H_
#define SHUNT_AGENT_RESOLVE_CGROUP_RESOLVER_H_

#include <string>

#include "absl/status/statusor.h"
#include "agent/datapath/datapath.h"
#include "agent/pair/pod.h"

namespace shunt {

class CgroupResolver {
 public:
  // `mount` is where cgroup v2 is mounted; FindCgroup2Mount() knows.
  explicit CgroupResolver(std::string mount) : mount_(std::move(mount)) {}

  // The pod's own directory if it names one, else the one below the mount whose
  // name holds "pod<uid>", with '-' as in the cgroupfs driver or '_' as in the
  // systemd driver (kubelet's naming). NOT_FOUND: not there (yet).
  absl::StatusOr<PodTarget> Resolve(const PodSpec& pod) const;

  const std::string& mount() const { return mount_; }

 private:
  std::string mount_;
};

// INVALID_ARGUMENT if the pod names a directory that exists and is not of cgroup
// v2. One that does not exist passes: it may be made later.
absl::Status CheckCgroup(const PodSpec& pod);

// The first cgroup2 mount of this mount namespace, by /proc/self/mountinfo.
// FAILED_PRECONDITION if there is none.
absl::StatusOr<std::string> FindCgroup2Mount();

}  // namespace shunt

#endif  // SHUNT_AGENT_RESOLVE_CGROUP_RESOLVER_H_
