// SPDX-License-Identifier: Apache-2.0
//
// A probe's row as a message. Pure.
#ifndef SHUNT_AGENT_OBSERVE_PROBE_MESSAGE_H_
#define SHUNT_AGENT_OBSERVE_PROBE_MESSAGE_H_

#include "agent/probe/probe.h"
#include "shunt/v1/admin.pb.h"

namespace shunt {

// A verdict that the enum does not name becomes its zero.
v1::Probe ToProto(const ProbeView& probe);

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_PROBE_MESSAGE_H_
