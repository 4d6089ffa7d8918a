// SPDX-License-Identifier: Apache-2.0
//
// What a probe is made of. Each family of rows is one file; probes.cc holds the
// one list of families and runs it.
#ifndef SHUNT_AGENT_PROBE_ROW_H_
#define SHUNT_AGENT_PROBE_ROW_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agent/probe/lab.h"
#include "agent/probe/probe.h"

namespace shunt {

class KernelTypes;

enum class Found {
  kAsWanted,
  kOtherwise,
  kNotHere,  // the machine lacks what the row is about: nothing to be wrong
  kUnknown,  // nothing that user space sees could tell
  kFailed,   // the trial itself broke
};

struct Finding {
  Found found;
  std::string happened;
  // Where they depend on what happened; empty: the row's own.
  std::string means = {};
  std::string to_do = {};
};

// What a row may work with. Shared by all rows of a run, which run on several
// threads.
struct ProbeContext {
  Lab* lab;                     // never null where Row::needs_lab
  const ProbeOptions* options;  // never null
  const KernelTypes* types;     // never null
};

using Probe = std::function<Finding(const ProbeContext&)>;

struct Row {
  const char* name;
  const char* about;  // ProbeView::about
  ProbeScope scope;
  const char* otherwise;  // the verdict when it is otherwise
  const char* tried;
  const char* means_as_wanted;
  const char* means_otherwise;
  const char* to_do;
  Probe find;
  bool needs_lab = true;
  bool alone = false;  // measures time: runs when the others are done
};

std::vector<Row> EngineRows();
std::vector<Row> HazardRows();
std::vector<Row> RaceRows();
std::vector<Row> FixRows();
std::vector<Row> FeatureRows();
std::vector<Row> EnvironmentRows();

// What several rows advise.
inline constexpr char kUseAnotherKernel[] =
    "use the kernel module, or a kernel without this fault; until then this node stays on plain "
    "TCP";
inline constexpr char kGateCovers[] =
    "nothing: the engine asks before each message, and sends by TCP what this concerns";
inline constexpr char kKeepOff[] =
    "keep the ports of programs that do this out of the policy, or use the kernel module";

Finding Failed(const absl::Status& status);

// "ECONNRESET".
std::string Errno(int error);

// "10 bytes", or the name of the errno that is negative here.
std::string Outcome(ssize_t result);

// Bytes of which no two neighbours of the same remainder are alike.
std::string Pattern(size_t size);

// The words of a small file; none if it cannot be read.
std::vector<std::string> WordsOf(const char* path);

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_ROW_H_
