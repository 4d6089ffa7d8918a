// SPDX-License-Identifier: Apache-2.0
//
// Desired state from a file, hot reloaded. Sees every way in which a file is
// replaced: written in place, renamed over, removed and made again, and the
// `..data` symlink swap of a mounted ConfigMap. Rests in between.
#ifndef SHUNT_AGENT_SOURCE_STATIC_SOURCE_H_
#define SHUNT_AGENT_SOURCE_STATIC_SOURCE_H_

#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/base/unique_fd.h"
#include "agent/source/source.h"

namespace shunt {

class StaticSource : public Source {
 public:
  using Load = std::function<absl::StatusOr<std::vector<PodSpec>>()>;
  using Report = std::function<void(const absl::Status&)>;

  // `load` reads the file at `path`. `report` gets the outcome of every load
  // after the first: an error means that the last pushed set stays in force.
  // Both are called from Start() and from this object's thread.
  StaticSource(std::string path, Load load, Report report);
  // Ends the thread; no callback runs after it.
  ~StaticSource() override;

  absl::Status Start(Receive receive) override;

 private:
  absl::Status Watch();
  // Takes the waiting events; true if one may concern the file.
  bool ReadEvents();
  void Run();

  const std::string path_;
  const Load load_;
  const Report report_;
  Receive receive_;
  UniqueFd inotify_;
  std::map<int, std::set<std::string>> names_;  // by watch
  UniqueFd stop_;
  std::thread thread_;
};

}  // namespace shunt

#endif  // SHUNT_AGENT_SOURCE_STATIC_SOURCE_H_
