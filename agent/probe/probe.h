// SPDX-License-Identifier: Apache-2.0
//
// What the running kernel's sockhash really does, found by trying it on real
// sockets: distributions back-port, so a version number proves nothing.
//
// RunProbes() makes its own connections on loopback in a scratch network
// namespace; without CAP_SYS_ADMIN (an agent in a pod) on the loopback of its
// own. It touches no other socket or pin and leaves nothing behind: kAll makes
// an empty cgroup for a moment, if it may, and attaches to it; and it attaches
// empty programs to tracepoints and lets them go at once. Thread-safe. Every
// wait is bounded: kEssential takes well under 300 ms on a kernel that works,
// kAll at most 5 s on one where nothing does. libbpf's messages go where the
// process has sent them (libbpf_set_print).
//
// The rooms: engine_rows (what the engine stands on), hazard_rows and race_rows
// (docs/hazards.md), fix_rows (the six fixes of 2018), feature_rows (what can be
// loaded and attached), environment_rows (capabilities, cgroups, other owners).
#ifndef SHUNT_AGENT_PROBE_PROBE_H_
#define SHUNT_AGENT_PROBE_PROBE_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace shunt {

// One behaviour of the running kernel, tried on real sockets.
struct ProbeView {
  std::string name;     // "fionread_counts_tcp_bytes"
  std::string verdict;  // one of those below
  std::string tried;
  std::string happened;
  std::string means;
  std::string to_do;        // begins with "nothing" when nothing need be done
  std::string family = {};  // "engine", "hazard", "fix", "feature", "environment"
  std::string about = {};   // "hazard 11", "fix 4", or empty
};

// As a program would see it on plain TCP, or as the engine needs it.
inline constexpr char kProbeOk[] = "ok";
// Not so; the engine can still be used, `to_do` says at what cost.
inline constexpr char kProbeDegraded[] = "degraded";
// Not so, or not to be found out: the sockhash engine must not be used.
inline constexpr char kProbeFatal[] = "fatal";
// Could not be tried here, and decides nothing.
inline constexpr char kProbeSkipped[] = "skipped";
// Cannot be told from user space, or a race that was not seen this time.
inline constexpr char kProbeUnknown[] = "unknown";

enum class ProbeScope {
  kEssential,  // at every start: all rows that can be fatal
  kAll,        // the doctor's: also every known difference from TCP
};

struct ProbeReport {
  std::vector<ProbeView> rows;  // always in the same order
  // Redirected unread bytes show in the reader's sk_rmem_alloc, and go when
  // they are read: what bpf/shunt.bpf.c's back-pressure counts on.
  bool rmem_is_charged = false;
  // False: tried on the loopback of the process's own network namespace.
  bool scratch_netns = false;

  // Null if there is no such row.
  const ProbeView* Find(std::string_view name) const;
};

struct ProbeOptions {
  ProbeScope scope = ProbeScope::kAll;
  // The pods' cgroup v2 directories: whose else programs are on them?
  std::vector<std::string> cgroups;
};

// Fails only if nothing could be tried at all. A kernel or a container that
// cannot load BPF programs is a fatal row, not an error.
absl::StatusOr<ProbeReport> RunProbes(const ProbeOptions& options);
absl::StatusOr<ProbeReport> RunProbes(ProbeScope scope);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_PROBE_H_
