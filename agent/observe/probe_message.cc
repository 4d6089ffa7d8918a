// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/probe_message.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace shunt {

v1::Probe ToProto(const ProbeView& probe) {
  v1::Probe message;
  message.set_name(probe.name);
  v1::ProbeVerdict verdict{};
  v1::ProbeVerdict_Parse(absl::StrCat("PROBE_VERDICT_", absl::AsciiStrToUpper(probe.verdict)),
                         &verdict);
  message.set_verdict(verdict);
  message.set_tried(probe.tried);
  message.set_happened(probe.happened);
  message.set_means(probe.means);
  message.set_to_do(probe.to_do);
  message.set_family(probe.family);
  message.set_about(probe.about);
  return message;
}

}  // namespace shunt
