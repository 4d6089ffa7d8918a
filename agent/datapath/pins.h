// SPDX-License-Identifier: Apache-2.0
//
// The pin directory: where the kernel side outlives the agent.
//   <bpffs>/            locked by the one agent of the node
//   <bpffs>/v1/maps/<name>  progs/<name>  links/<pod uid>
// It appears complete, by one rename, or not at all. Not thread-safe.
#ifndef SHUNT_AGENT_DATAPATH_PINS_H_
#define SHUNT_AGENT_DATAPATH_PINS_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"

namespace shunt {

class Pins {
 public:
  // Makes `root` if needed, takes its lock for this object's life, removes what
  // an unfinished Create() left. FAILED_PRECONDITION: not on a bpffs, read-only.
  // ALREADY_EXISTS: another agent holds the lock.
  static absl::StatusOr<Pins> Open(const std::string& root);

  Pins(Pins&&) = default;
  Pins& operator=(Pins&&) = default;

  // Is there a v1 directory from an earlier agent?
  bool Exists() const;

  // A new v1 under a temporary name: pin into it by PinNew(), then Publish().
  absl::Status BeginNew();
  absl::Status PinNew(int fd, std::string_view kind, std::string_view name);
  absl::Status PublishNew();

  // kind: "maps", "progs", "links" (sock_ops by pod), "options" (setsockopt by pod).
  std::string Path(std::string_view kind, std::string_view name) const;
  absl::StatusOr<UniqueFd> Get(std::string_view kind, std::string_view name) const;
  absl::Status Pin(int fd, std::string_view kind, std::string_view name);
  // Replaces what is pinned under the name, in one rename.
  absl::Status Replace(int fd, std::string_view kind, std::string_view name);
  absl::Status Unpin(std::string_view kind, std::string_view name);
  absl::StatusOr<std::vector<std::string>> List(std::string_view kind) const;

  // Removes v1 and all in it.
  absl::Status RemoveAll();

 private:
  Pins(std::string root, UniqueFd lock);

  std::string root_;
  std::string live_;
  std::string fresh_;
  UniqueFd lock_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_PINS_H_
