// SPDX-License-Identifier: Apache-2.0
#include "tests/support/agent_process.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "tests/support/environment.h"

namespace shunt::test {
namespace {

namespace fs = std::filesystem;

std::string FromEnvironment(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value != nullptr ? value : otherwise;
}

std::string AgentPath(AgentProcess::Generation generation) {
  return generation == AgentProcess::Generation::kUsual
             ? FromEnvironment("SHUNT_AGENT", SHUNT_AGENT_PATH)
             : FromEnvironment("SHUNT_AGENT_NEXT", SHUNT_AGENT_NEXT_PATH);
}
std::string CtlPath() { return FromEnvironment("SHUNT_CTL", SHUNT_CTL_PATH); }

void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text;
  file.close();
  if (!file) {
    StopErrno(Where::Here(), "writing " + path, errno);
  }
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

// As kubelet mounts a ConfigMap: agent.yaml -> ..data/agent.yaml, ..data -> <n>.
AgentProcess::AgentProcess(std::string bpffs)
    : bpffs_(std::move(bpffs)),
      directory_(MakeTempDir("agent")),
      config_path_(directory_ + "/agent.yaml"),
      socket_path_(directory_ + "/agent.sock"),
      output_path_(directory_ + "/output") {}

std::string AgentProcess::Yaml(const std::vector<AgentPod>& pods) const {
  std::ostringstream yaml;
  yaml << "apiVersion: shunt.dev/v1alpha1\n"
       << "kind: AgentConfig\n"
       << "engine: sockhash\n"
       << "bpffs: " << bpffs_ << "\n"
       << "admin: {socket: " << socket_path_ << ", metrics: \"127.0.0.1:9464\"}\n"
       << "static:\n"
       << "  pods:" << (pods.empty() ? " []" : "") << "\n";
  for (const AgentPod& pod : pods) {
    yaml << "  - uid: " << pod.uid << "\n";
    if (!pod.cgroup.empty()) {
      yaml << "    cgroup: " << pod.cgroup << "\n";
    }
    yaml << "    ports: [";
    for (size_t i = 0; i < pod.ports.size(); i++) {
      yaml << (i > 0 ? ", " : "") << '"' << pod.ports[i] << '"';
    }
    yaml << "]\n";
    if (pod.proxy_uid) {
      yaml << "    proxyUid: " << *pod.proxy_uid << "\n";
    }
  }
  return yaml.str();
}

void AgentProcess::WriteYaml(const std::string& text, Rewrite how) {
  const std::string data = directory_ + "/..data";
  std::string fresh;
  switch (how) {
    case Rewrite::kInPlace:
      WriteFile(config_path_, text);
      return;
    case Rewrite::kRename:
      fresh = directory_ + "/fresh";
      WriteFile(fresh, text);
      fs::rename(fresh, config_path_);
      return;
    case Rewrite::kSymlink:
      fresh = directory_ + "/..data_tmp";
      const std::string target = directory_ + "/.." + std::to_string(++links_);
      fs::create_directory(target);
      WriteFile(target + "/agent.yaml", text);
      fs::create_directory_symlink(target, fresh);
      fs::rename(fresh, data);
      if (!fs::is_symlink(config_path_)) {
        fs::create_symlink("..data/agent.yaml", directory_ + "/fresh");
        fs::rename(directory_ + "/fresh", config_path_);
      }
      return;
  }
}

// As if an earlier agent had watched all ports that the pods list.
void AgentProcess::RememberAsClean(const std::vector<AgentPod>& pods) {
  Json workloads = Json::array();
  for (const AgentPod& pod : pods) {
    for (const std::string& range : pod.ports) {
      const size_t dash = range.find('-');
      const int first = std::stoi(range);
      const int last = dash == std::string::npos ? first : std::stoi(range.substr(dash + 1));
      for (int port = first; port <= last && workloads.size() < 4000; port++) {
        workloads.push_back({{"pod", pod.uid},
                             {"port", port},
                             {"hazards", Json::array()},
                             {"client", ""},
                             {"server", ""}});
      }
    }
  }
  WriteFile(directory_ + "/workloads.json", Json{{"version", 1}, {"workloads", workloads}}.dump());
}

void AgentProcess::Start(const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = launcher_;
  for (const std::string& argument : {AgentPath(generation_), std::string("--config"), config_path_,
                                      std::string("--log-format=json")}) {
    arguments.push_back(argument);
  }
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  process_ = Child::Spawn(arguments, &netns_, output_path_, output_path_);
}

void AgentProcess::StartReady(size_t pods, const std::vector<std::string>& flags,
                              const Where& where) {
  Start(flags);
  WaitEnrolling(pods, where);
}

void AgentProcess::WaitEnrolling(size_t pods, const Where& where) {
  CommandResult last;
  try {
    WaitUntil(
        "the agent enrols " + std::to_string(pods) + " pods",
        [&] {
          if (!running()) {
            return true;
          }
          last = RunCommand({CtlPath(), "--socket", socket_path_, "--output", "json", "pods"},
                            nullptr, "", kPatience, where);
          if (last.exit_code != 0) {
            return false;
          }
          const Json answer = Json::parse(last.out);
          size_t enrolling = 0;
          for (const Json& pod : answer.at("pods")) {
            enrolling += pod.at("state") == "enrolling";
          }
          return enrolling == pods;
        },
        kPatience, where);
  } catch (const Stopped&) {
    Stop(where, "shuntctl pods says:\n" + last.out + last.err + "and the agent:\n" + Output());
  }
  if (!running()) {
    Stop(where, "the agent ended with " + std::to_string(process_->Wait()) + ":\n" + Output());
  }
}

int AgentProcess::Terminate(const Where& where) {
  process_->Signal(SIGTERM);
  return process_->Wait(kPatience, where);
}

int AgentProcess::RunToExit(const std::vector<std::string>& flags, const Where& where) {
  Start(flags);
  return process_->Wait(kPatience, where);
}

std::string AgentProcess::Output() const { return ReadFile(output_path_); }

std::vector<Json> AgentProcess::LogLines(const std::string& key, const std::string& value) const {
  std::vector<Json> found;
  std::istringstream output(Output());
  for (std::string line; std::getline(output, line);) {
    Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_object() && object.contains(key) && object[key] == value) {
      found.push_back(std::move(object));
    }
  }
  return found;
}

CommandResult AgentProcess::Ctl(const std::vector<std::string>& arguments, milliseconds patience,
                                const Where& where) const {
  std::vector<std::string> all = {CtlPath(), "--socket", socket_path_};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return RunCommand(all, nullptr, "", patience, where);
}

Json AgentProcess::Ask(const std::vector<std::string>& verb, const Where& where) const {
  std::vector<std::string> arguments = {"--output", "json"};
  arguments.insert(arguments.end(), verb.begin(), verb.end());
  const CommandResult result = Ctl(arguments, kPatience, where);
  Json answer = Json::parse(result.out, nullptr, /*allow_exceptions=*/false);
  if (result.exit_code != 0 || answer.is_discarded()) {
    Stop(where, "shuntctl " + verb.front() + " exited with " + std::to_string(result.exit_code) +
                    ":\n" + result.out + result.err);
  }
  return answer;
}

Json AgentProcess::PodEntry(const std::string& uid, const Where& where) const {
  const Json answer = Ask({"pods"}, where);
  for (const Json& pod : answer.at("pods")) {
    if (pod.at("uid") == uid) {
      return pod;
    }
  }
  return nullptr;
}

}  // namespace shunt::test
