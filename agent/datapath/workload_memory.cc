// SPDX-License-Identifier: Apache-2.0
#include "agent/datapath/workload_memory.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/base/log.h"
#include "agent/pair/exits.h"
#include "nlohmann/json.hpp"

namespace shunt {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

uint32_t HazardsFromNames(const Json& names) {
  uint32_t hazards = 0;
  for (const Json& name : names) {
#define SHUNT_HAZARD_BIT(hazard, bit, word, text) \
  if (name == word) {                             \
    hazards |= SHUNT_HAZARD_##hazard;             \
  }
    SHUNT_HAZARDS(SHUNT_HAZARD_BIT)
#undef SHUNT_HAZARD_BIT
  }
  return hazards;
}

Json ToJson(const KnownWorkload& workload) {
  Json hazards = Json::array();
  if (workload.hazards != 0) {
    for (const auto& name : absl::StrSplit(HazardNames(workload.hazards), ", ")) {
      hazards.push_back(std::string(name));
    }
  }
  return {{"pod", workload.pod_uid},
          {"port", workload.port},
          {"hazards", std::move(hazards)},
          {"client", workload.client},
          {"server", workload.server}};
}

// Throws Json::exception.
KnownWorkload FromJson(const Json& json) {
  KnownWorkload workload;
  workload.pod_uid = json.at("pod").get<std::string>();
  workload.port = json.at("port").get<uint16_t>();
  workload.hazards = HazardsFromNames(json.at("hazards"));
  workload.client = json.at("client").get<std::string>();
  workload.server = json.at("server").get<std::string>();
  return workload;
}

}  // namespace

WorkloadMemory::WorkloadMemory(std::string path) : path_(std::move(path)) { Load(); }

void WorkloadMemory::Load() {
  std::ifstream file(path_);
  if (path_.empty() || !file) {
    return;
  }
  try {
    const Json json = Json::parse(file);
    if (json.at("version") == kVersion) {
      for (const Json& entry : json.at("workloads")) {
        known_.push_back(FromJson(entry));
      }
    }
  } catch (const Json::exception& error) {
    known_.clear();
    log::Warning("what was learnt of workloads cannot be read; it is learnt again",
                 {{"file", path_}, {"reason", "memory_unreadable"}, {"err", error.what()}});
  }
}

std::vector<KnownWorkload> WorkloadMemory::OfPod(const std::string& pod_uid) const {
  std::vector<KnownWorkload> of_pod;
  std::copy_if(known_.begin(), known_.end(), std::back_inserter(of_pod),
               [&pod_uid](const KnownWorkload& known) { return known.pod_uid == pod_uid; });
  return of_pod;
}

uint32_t WorkloadMemory::HazardsOf(uint16_t port, const std::string& client,
                                   const std::string& server) const {
  uint32_t hazards = 0;
  for (const KnownWorkload& known : known_) {
    if (known.port == port && known.client == client && known.server == server) {
      hazards |= known.hazards;
    }
  }
  return hazards;
}

void WorkloadMemory::Remember(const KnownWorkload& workload) {
  const auto same = [&workload](const KnownWorkload& known) {
    return known.pod_uid == workload.pod_uid && known.port == workload.port;
  };
  const auto found = std::find_if(known_.begin(), known_.end(), same);
  if (found != known_.end() && *found == workload) {
    return;
  }
  if (found != known_.end()) {
    known_.erase(found);
  }
  known_.push_back(workload);
  if (known_.size() > kRemembered) {
    known_.pop_front();
  }
  Save();
}

void WorkloadMemory::Save() const {
  if (path_.empty()) {
    return;
  }
  Json workloads = Json::array();
  for (const KnownWorkload& known : known_) {
    workloads.push_back(ToJson(known));
  }
  const std::string fresh = absl::StrCat(path_, ".new");
  std::ofstream file(fresh, std::ios::trunc);
  file << Json{{"version", kVersion}, {"workloads", std::move(workloads)}}.dump(
              1, ' ', false, Json::error_handler_t::replace)
       << "\n";
  file.close();
  if (!file || rename(fresh.c_str(), path_.c_str()) != 0) {
    log::Warning("what was learnt of workloads cannot be kept",
                 {{"file", path_}, {"reason", "memory_unwritable"}, {"err", strerror(errno)}});
  }
}

}  // namespace shunt
