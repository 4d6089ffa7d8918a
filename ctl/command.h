// SPDX-License-Identifier: Apache-2.0
//
// shuntctl: asks the agent of this node over its admin socket. Where no agent
// runs, doctor looks at the kernel from here.
#ifndef SHUNT_CTL_COMMAND_H_
#define SHUNT_CTL_COMMAND_H_

#include <iosfwd>

namespace shunt::ctl {

// Runs one command line. The answer goes to `out`, progress and errors to `err`.
// Returns the exit code:
//   0  done; for doctor: nothing is fatal; for drain: drained
//   1  the agent could not do it, did not in time, or the doctor found a fatal
//   2  wrong usage, or no agent on the socket (but for doctor)
int Run(int argc, const char* const* argv, std::ostream& out, std::ostream& err);

}  // namespace shunt::ctl

#endif  // SHUNT_CTL_COMMAND_H_
