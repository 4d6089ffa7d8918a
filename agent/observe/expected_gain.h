// SPDX-License-Identifier: Apache-2.0
//
// What can honestly be said about the gain of accelerating what was observed.
#ifndef SHUNT_AGENT_OBSERVE_EXPECTED_GAIN_H_
#define SHUNT_AGENT_OBSERVE_EXPECTED_GAIN_H_

#include <string>

#include "agent/datapath/datapath.h"

namespace shunt {

struct ExpectedGain {
  std::string ratio;  // "unknown", or "none": every connection would stay on TCP
  std::string basis;  // how it was found, or why not
};

// A dry run times nothing: it never puts a figure on a connection that would be
// accelerated, but tells the size of message for which to measure one.
ExpectedGain GainOf(const PodObservation& observation);

}  // namespace shunt

#endif  // SHUNT_AGENT_OBSERVE_EXPECTED_GAIN_H_
