// SPDX-License-Identifier: Apache-2.0
//
// The agent's answers as text. Pure.
//
// JSON is for programs: every key is always there, further keys may be added,
// numbers carry no units: bytes and seconds. Maps by reason hold the reasons
// that happened. Tables are for people and may change.
//
// status:
//   {engine, engineReason, pods, pairs: {accelerated, plain}, redirectedBytes,
//    fallbacks: {reason: count}, version, draining, podsEnrolling,
//    ends: {used, capacity}, refused: {reason: count}, exits: {reason: count},
//    configError}
//   fallbacks: messages sent by TCP although their pair is enrolled, and
//   connections left on TCP although their pod is listed; refused: the latter
//   alone; exits: every way out of the kernel programs.
// pods:   {pods: [{uid, state, reason, detail, cgroup, ports: ["80", "100-200"],
//          proxyUid: number or null, pairs, pairsMade, refused, redirectedBytes}]}
// pairs:  {total, pairs: [{pod, direction, family, clientPort, dialedPort,
//          serverPort, clientToServerBytes, serverToClientBytes, unreadBytes,
//          ageSeconds, state}]}; direction is "" where it is not known
// doctor: {ok, probes: [{name, verdict, tried, happened, means, toDo, family,
//          about}]}; verdict is ok, degraded, fatal, skipped or unknown; family
//          engine, hazard, fix, feature or environment; about a row of
//          docs/hazards.md ("hazard 11"), a fix of 2018 ("fix 4"), or ""
// drain:  {drained, pods, ends, unreadBytes,
//          waiting: [{pod, ends, unreadBytes}],
//          examples: [{role, localPort, remotePort, unreadBytes}]}
#ifndef SHUNT_CTL_RENDER_H_
#define SHUNT_CTL_RENDER_H_

#include <string>

#include "shunt/v1/admin.pb.h"

namespace shunt::ctl {

enum class Output { kTable, kJson };

// Whole lines.
std::string Render(Output output, const v1::GetStatusResponse& status);
std::string Render(Output output, const v1::ListPodsResponse& pods);
std::string Render(Output output, const v1::ListPairsResponse& pairs);
// A table tells in full what is not ok, or everything.
std::string Render(Output output, const v1::RunDoctorResponse& doctor, bool in_full = false);

// Did no probe end fatally?
bool IsHealthy(const v1::RunDoctorResponse& doctor);

// What a drain waits for: one or more lines, the same for both outputs.
std::string DrainProgressText(const v1::DrainResponse& progress);
// How it ended; `last` is the last thing that was reported.
std::string RenderDrain(Output output, bool drained, const v1::DrainResponse& last);

}  // namespace shunt::ctl

#endif  // SHUNT_CTL_RENDER_H_
