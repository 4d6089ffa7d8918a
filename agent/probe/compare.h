// SPDX-License-Identifier: Apache-2.0
//
// One scenario, played on plain TCP and on members of the sockhash alike: what
// a program would notice is what differs.
#ifndef SHUNT_AGENT_PROBE_COMPARE_H_
#define SHUNT_AGENT_PROBE_COMPARE_H_

#include <string>

#include "agent/probe/lab.h"
#include "agent/probe/row.h"

namespace shunt {

// What becomes of one connection, in words that are the same whenever the same
// happens.
using Scenario = std::string (*)(Trial& trial);

// The machine was too busy for the trial to say anything: it is tried again.
inline constexpr char kTooBusy[] = "the machine is too busy";

// Messages go straight to the peer, unless the scenario says otherwise. Had
// every one gone by TCP, being equal to TCP would say nothing: that is
// otherwise, too.
Probe Redirected(Scenario scenario, Family family = Family::kIpv4);
// For a kernel may refuse the message before any program sees it.
Probe RedirectedIfSent(Scenario scenario);
// Both ends are enrolled, messages go by TCP.
Probe Member(Scenario scenario, Family family = Family::kIpv4);
// Neither end is enrolled at first: the scenario calls Trial::Join().
Probe JoiningLater(Scenario scenario);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_COMPARE_H_
