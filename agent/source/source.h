// SPDX-License-Identifier: Apache-2.0
//
// Where desired state comes from. A source pushes whole sets: what a set omits
// is to be removed, so a source knows nothing of the past and nothing below it
// knows the source (after TensorFlow Serving's core/source.h).
#ifndef SHUNT_AGENT_SOURCE_SOURCE_H_
#define SHUNT_AGENT_SOURCE_SOURCE_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "agent/pair/pod.h"

namespace shunt {

class Source {
 public:
  using Receive = std::function<void(std::vector<PodSpec>)>;

  virtual ~Source() = default;

  // Pushes the first complete set before it returns OK, and each later one from
  // a thread of its own, one at a time. Called once.
  virtual absl::Status Start(Receive receive) = 0;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_SOURCE_SOURCE_H_
