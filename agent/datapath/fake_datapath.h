// SPDX-License-Identifier: Apache-2.0
//
// A Datapath without a kernel: behaves (remembers pods, lets them go when the
// test says that they are drained), and fails where a test scripts it.
#ifndef SHUNT_AGENT_DATAPATH_FAKE_DATAPATH_H_
#define SHUNT_AGENT_DATAPATH_FAKE_DATAPATH_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "agent/datapath/datapath.h"

namespace shunt {

class FakeDatapath : public Datapath {
 public:
  struct Pod {
    PodTarget target;
    bool retired = false;
    Waiting waiting;  // what LetGo() answers
  };

  std::map<std::string, Pod> pods;
  std::map<std::string, absl::Status> fail_enrol;   // by uid
  std::map<std::string, absl::Status> fail_retire;  // by uid
  std::vector<std::string> calls;                   // "enrol a", "retire a", …
  Totals totals;
  std::vector<shunt_end_record> ends;
  bool pins_removed = false;

  std::string_view engine() const override { return "fake"; }
  std::vector<PodTarget> Adopted() const override {
    std::vector<PodTarget> targets;
    for (const auto& [uid, pod] : pods) {
      targets.push_back(pod.target);
    }
    return targets;
  }
  absl::Status Enrol(const PodTarget& pod) override {
    calls.push_back(absl::StrCat("enrol ", pod.uid));
    if (const auto scripted = fail_enrol.find(pod.uid); scripted != fail_enrol.end()) {
      return scripted->second;
    }
    pods[pod.uid].target = pod;
    pods[pod.uid].retired = false;
    return absl::OkStatus();
  }
  absl::Status Retire(const std::string& uid) override {
    calls.push_back(absl::StrCat("retire ", uid));
    if (const auto scripted = fail_retire.find(uid); scripted != fail_retire.end()) {
      return scripted->second;
    }
    if (pods.count(uid) == 0) {
      return absl::NotFoundError(uid);
    }
    pods[uid].retired = true;
    return absl::OkStatus();
  }
  absl::StatusOr<Waiting> LetGo(const std::string& uid) override {
    const auto found = pods.find(uid);
    if (found == pods.end()) {
      return absl::NotFoundError(uid);
    }
    const Waiting waiting = found->second.waiting;
    if (waiting.ends == 0 && found->second.retired) {
      calls.push_back(absl::StrCat("detach ", uid));
      pods.erase(found);
    }
    return waiting;
  }
  absl::Status RemovePins() override {
    pins_removed = true;
    return absl::OkStatus();
  }
  absl::StatusOr<Totals> ReadTotals() override { return totals; }
  absl::StatusOr<std::vector<std::pair<std::string, PodCounts>>> ReadPods() override {
    std::vector<std::pair<std::string, PodCounts>> counts;
    for (const auto& [uid, pod] : pods) {
      counts.emplace_back(uid, PodCounts{});
    }
    return counts;
  }
  absl::StatusOr<std::vector<shunt_end_record>> ListEnds() override { return ends; }
  std::string UidOf(uint32_t) const override { return ""; }
  absl::Status DrainEvents(const std::function<void(const shunt_event&)>&) override {
    return absl::OkStatus();
  }
  std::optional<std::chrono::microseconds> Tend() override { return std::nullopt; }
  absl::StatusOr<std::vector<WorkloadRecord>> ReadWorkloads() override {
    return std::vector<WorkloadRecord>();
  }
  int EventsFd() const override { return -1; }
};

}  // namespace shunt

#endif  // SHUNT_AGENT_DATAPATH_FAKE_DATAPATH_H_
