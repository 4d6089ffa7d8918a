// SPDX-License-Identifier: Apache-2.0
#include "ctl/render.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "ctl/table.h"
#include "nlohmann/json.hpp"

namespace shunt::ctl {
namespace {

using Json = nlohmann::ordered_json;
using Align = Table::Align;

std::string Dump(const Json& json) {
  // Paths may be no UTF-8: replace, never throw.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// POD_STATE_ENROLLING, "POD_STATE_" to "enrolling"; `unknown` for the enum's zero
// and for what a newer agent says.
std::string Token(const std::string& name, const std::string& prefix,
                  const std::string& unknown = "unknown") {
  const std::string token = absl::AsciiStrToLower(std::string(absl::StripPrefix(name, prefix)));
  return token.empty() || token == "unspecified" ? unknown : token;
}

std::string StateOf(const v1::Pod& pod) {
  return Token(v1::PodState_Name(pod.state()), "POD_STATE_");
}
std::string StateOf(const v1::Pair& pair) {
  return Token(v1::PairState_Name(pair.state()), "PAIR_STATE_");
}
std::string DirectionOf(const v1::Pair& pair) {
  return Token(v1::PairDirection_Name(pair.direction()), "PAIR_DIRECTION_", "");
}
std::string FamilyOf(const v1::Pair& pair) {
  return Token(v1::AddressFamily_Name(pair.family()), "ADDRESS_FAMILY_");
}
std::string VerdictOf(const v1::Probe& probe) {
  return Token(v1::ProbeVerdict_Name(probe.verdict()), "PROBE_VERDICT_");
}
std::string RoleOf(const v1::WaitingEnd& end) {
  return Token(v1::EndRole_Name(end.role()), "END_ROLE_");
}

std::vector<std::string> PortsOf(const v1::Pod& pod) {
  std::vector<std::string> ports;
  for (const v1::PortRange& range : pod.ports()) {
    ports.push_back(range.first() == range.last() ? absl::StrCat(range.first())
                                                  : absl::StrCat(range.first(), "-", range.last()));
  }
  return ports;
}

bool IsFallback(const v1::ExitCount& exit) {
  return exit.exit_class() == v1::EXIT_CLASS_FALLBACK ||
         exit.exit_class() == v1::EXIT_CLASS_REFUSED;
}
bool IsLeaving(const v1::ExitCount& exit) { return exit.exit_class() == v1::EXIT_CLASS_LEAVING; }
bool IsRefusal(const v1::ExitCount& exit) { return exit.exit_class() == v1::EXIT_CLASS_REFUSED; }

// What happened at all.
std::vector<v1::ExitCount> Happened(const v1::GetStatusResponse& status,
                                    const std::function<bool(const v1::ExitCount&)>& wanted) {
  std::vector<v1::ExitCount> exits;
  std::copy_if(status.exits().begin(), status.exits().end(), std::back_inserter(exits),
               [&](const v1::ExitCount& exit) { return exit.count() > 0 && wanted(exit); });
  return exits;
}

Json ByReason(const v1::GetStatusResponse& status,
              const std::function<bool(const v1::ExitCount&)>& wanted) {
  Json json = Json::object();
  for (const v1::ExitCount& exit : Happened(status, wanted)) {
    json[exit.reason()] = exit.count();
  }
  return json;
}

Json ToJson(const v1::Observation& observation) {
  Json stay = Json::object();
  for (const v1::ExitCount& exit : observation.would_stay()) {
    stay[exit.reason()] = exit.count();
  }
  Json hazards = Json::object();
  for (const v1::ObservedHazard& hazard : observation.hazards()) {
    hazards[absl::StrCat(hazard.port())] =
        std::vector<std::string>(absl::StrSplit(hazard.names(), ", "));
  }
  return {
      {"wouldAccelerate", observation.would_accelerate()},
      {"wouldStay", std::move(stay)},
      {"hazards", std::move(hazards)},
      {"receives", observation.receives()},
      {"receivedBytes", observation.received_bytes()},
      {"expectedGain", observation.expected_gain()},
      {"expectedGainBasis", observation.expected_gain_basis()},
  };
}

// "  3 connections would be accelerated, 2 would stay on TCP (server_alone 2)", …
std::string ToText(const v1::Observation& observation) {
  uint64_t staying = 0;
  std::vector<std::string> reasons;
  for (const v1::ExitCount& exit : observation.would_stay()) {
    staying += exit.count();
    reasons.push_back(absl::StrCat(exit.reason(), " ", exit.count()));
  }
  std::string text = absl::StrCat(
      "  ", Counted(observation.would_accelerate(), "connection", "connections"),
      " would be accelerated, ", staying, " would stay on TCP",
      reasons.empty() ? "" : absl::StrCat(" (", absl::StrJoin(reasons, ", "), ")"), "\n");
  for (const v1::ObservedHazard& hazard : observation.hazards()) {
    absl::StrAppend(&text, "  hazards at port ", hazard.port(), ": ", hazard.names(),
                    ": its next connections would stay on TCP\n");
  }
  absl::StrAppend(&text, "  expected gain: ", observation.expected_gain(), ": ",
                  observation.expected_gain_basis(), "\n");
  return text;
}

// Null, not absent, where nothing is observed.
template <typename Answer>
Json ObservedOf(const Answer& answer) {
  return answer.has_observation() ? ToJson(answer.observation()) : Json(nullptr);
}

Json ToJson(const v1::GetStatusResponse& status) {
  return {
      {"engine", status.engine()},
      {"engineReason", status.engine_reason()},
      {"pods", status.pods()},
      {"pairs", {{"accelerated", status.pairs_live()}, {"plain", status.connections_plain()}}},
      {"redirectedBytes", status.redirected_bytes()},
      {"fallbacks", ByReason(status, IsFallback)},
      {"version", status.version()},
      {"draining", status.draining()},
      {"podsEnrolling", status.pods_enrolling()},
      {"ends", {{"used", status.ends()}, {"capacity", status.ends_capacity()}}},
      {"refused", ByReason(status, IsRefusal)},
      {"left", ByReason(status, IsLeaving)},
      {"exits", ByReason(status, [](const v1::ExitCount&) { return true; })},
      {"configError", status.config_error()},
      {"observed", ObservedOf(status)},
  };
}

std::string ToTable(const v1::GetStatusResponse& status) {
  Table facts({{}, {}});
  facts.AddRow({"engine", status.engine_reason().empty()
                              ? status.engine()
                              : absl::StrCat(status.engine(), ": ", status.engine_reason())});
  facts.AddRow({"version", status.version()});
  facts.AddRow(
      {"pods", absl::StrCat(status.pods(), " wanted, ", status.pods_enrolling(), " enrolling")});
  facts.AddRow(
      {"pairs", absl::StrCat(status.pairs_live(), " accelerated now, ",
                             Counted(status.connections_plain(), "connection", "connections"),
                             " left on TCP so far")});
  facts.AddRow({"redirected", HumaneBytes(status.redirected_bytes())});
  facts.AddRow(
      {"sockets", absl::StrCat(status.ends(), " of ", status.ends_capacity(), " enrolled")});
  if (status.draining()) {
    facts.AddRow({"draining", "yes: nothing new is accelerated until the agent is restarted"});
  }
  if (!status.config_error().empty()) {
    facts.AddRow({"config", absl::StrCat("last reload refused: ", status.config_error())});
  }

  if (status.has_observation()) {
    return absl::StrCat(facts.ToText(), "\nObserved:\n", ToText(status.observation()));
  }

  const std::vector<v1::ExitCount> fallbacks = Happened(
      status, [](const v1::ExitCount& exit) { return IsFallback(exit) || IsLeaving(exit); });
  if (fallbacks.empty()) {
    return facts.ToText() + "\nNothing fell back to TCP.\n";
  }
  Table reasons({{"WENT BY TCP"}, {"COUNT", Align::kRight}, {"OF"}, {"BECAUSE"}});
  for (const v1::ExitCount& exit : fallbacks) {
    reasons.AddRow({exit.reason(), absl::StrCat(exit.count()),
                    IsRefusal(exit)   ? "connections"
                    : IsLeaving(exit) ? "pairs"
                                      : "messages",
                    exit.text()});
  }
  return absl::StrCat(facts.ToText(), "\n", reasons.ToText());
}

Json ToJson(const v1::ListPodsResponse& pods) {
  Json list = Json::array();
  for (const v1::Pod& pod : pods.pods()) {
    list.push_back({
        {"uid", pod.uid()},
        {"state", StateOf(pod)},
        {"reason", pod.reason()},
        {"detail", pod.detail()},
        {"cgroup", pod.cgroup()},
        {"ports", PortsOf(pod)},
        {"proxyUid", pod.has_proxy_uid() ? Json(pod.proxy_uid()) : Json(nullptr)},
        {"pairs", pod.pairs_live()},
        {"pairsMade", pod.pairs_made()},
        {"refused", pod.refused()},
        {"redirectedBytes", pod.redirected_bytes()},
        {"liveBefore", pod.has_live_before() ? Json(pod.live_before()) : Json("unknown")},
        {"liveBeforeUnknown", pod.live_before_unknown()},
        {"observed", ObservedOf(pod)},
    });
  }
  return {{"pods", std::move(list)}};
}

std::string ToTable(const v1::ListPodsResponse& pods) {
  if (pods.pods().empty()) {
    return "No pods: list some under static.pods in the agent's configuration, or see whether "
           "the controller knows this node.\n";
  }
  Table table({{"POD"},
               {"STATE"},
               {"REASON"},
               {"PORTS"},
               {"PAIRS", Align::kRight},
               {"MADE", Align::kRight},
               {"REFUSED", Align::kRight},
               {"REDIRECTED", Align::kRight},
               {"LIVE BEFORE", Align::kRight},
               {"DETAIL"}});
  std::string observed;
  for (const v1::Pod& pod : pods.pods()) {
    table.AddRow({pod.uid(), StateOf(pod), pod.reason(), absl::StrJoin(PortsOf(pod), ","),
                  absl::StrCat(pod.pairs_live()), absl::StrCat(pod.pairs_made()),
                  absl::StrCat(pod.refused()), HumaneBytes(pod.redirected_bytes()),
                  pod.has_live_before() ? absl::StrCat(pod.live_before()) : "unknown",
                  pod.detail()});
    if (pod.has_observation()) {
      absl::StrAppend(&observed, "\nPod ", pod.uid(), ", observed:\n", ToText(pod.observation()));
    }
  }
  return absl::StrCat(table.ToText(), observed);
}

Json ToJson(const v1::ListPairsResponse& pairs) {
  Json list = Json::array();
  for (const v1::Pair& pair : pairs.pairs()) {
    list.push_back({
        {"pod", pair.pod_uid()},
        {"direction", DirectionOf(pair)},
        {"family", FamilyOf(pair)},
        {"clientPort", pair.client_port()},
        {"dialedPort", pair.dialed_port()},
        {"serverPort", pair.server_port()},
        {"clientToServerBytes", pair.client_to_server_bytes()},
        {"serverToClientBytes", pair.server_to_client_bytes()},
        {"unreadBytes", pair.unread_bytes()},
        {"ageSeconds", std::round(pair.age_seconds() * 1000) / 1000},
        {"state", StateOf(pair)},
    });
  }
  return {{"total", pairs.total()}, {"pairs", std::move(list)}};
}

std::string ToTable(const v1::ListPairsResponse& pairs) {
  if (pairs.pairs().empty()) {
    return "No pairs: only connections made after their pod was enrolled are accelerated. "
           "`shuntctl pods` shows where pods stand, `shuntctl status` why connections stay on "
           "TCP.\n";
  }
  Table table({{"POD"},
               {"DIRECTION"},
               {"FAMILY"},
               {"CLIENT", Align::kRight},
               {"DIALED", Align::kRight},
               {"SERVER", Align::kRight},
               {"TO SERVER", Align::kRight},
               {"TO CLIENT", Align::kRight},
               {"UNREAD", Align::kRight},
               {"AGE", Align::kRight},
               {"STATE"}});
  for (const v1::Pair& pair : pairs.pairs()) {
    table.AddRow({pair.pod_uid(), DirectionOf(pair), FamilyOf(pair),
                  absl::StrCat(pair.client_port()), absl::StrCat(pair.dialed_port()),
                  absl::StrCat(pair.server_port()), HumaneBytes(pair.client_to_server_bytes()),
                  HumaneBytes(pair.server_to_client_bytes()), HumaneBytes(pair.unread_bytes()),
                  HumaneAge(pair.age_seconds()), StateOf(pair)});
  }
  std::string text = table.ToText();
  const auto shown = static_cast<uint64_t>(pairs.pairs_size());
  if (shown < pairs.total()) {
    absl::StrAppend(&text, "\nThe busiest ", shown, " of ", pairs.total(),
                    " pairs: --limit shows more.\n");
  }
  return text;
}

Json ToJson(const v1::RunDoctorResponse& doctor) {
  Json list = Json::array();
  for (const v1::Probe& probe : doctor.probes()) {
    list.push_back({
        {"name", probe.name()},
        {"verdict", VerdictOf(probe)},
        {"tried", probe.tried()},
        {"happened", probe.happened()},
        {"means", probe.means()},
        {"toDo", probe.to_do()},
        {"family", probe.family()},
        {"about", probe.about()},
    });
  }
  return {{"ok", IsHealthy(doctor)}, {"probes", std::move(list)}};
}

std::string ToTable(const v1::RunDoctorResponse& doctor, bool in_full) {
  if (doctor.probes().empty()) {
    return "Nothing was tried: see the agent's log for why its engine has no probes.\n";
  }
  Table table({{"PROBE"}, {"ABOUT"}, {"VERDICT"}, {"HAPPENED"}});
  std::string details;
  for (const v1::Probe& probe : doctor.probes()) {
    table.AddRow({probe.name(), probe.about().empty() ? probe.family() : probe.about(),
                  VerdictOf(probe), probe.happened()});
    if (probe.verdict() == v1::PROBE_VERDICT_OK && !in_full) {
      continue;
    }
    absl::StrAppend(&details, "\n", probe.name(), "\n");
    for (const auto& [title, text] :
         {std::pair("tried", &probe.tried()), std::pair("means", &probe.means()),
          std::pair("to do", &probe.to_do())}) {
      if (!text->empty()) {
        absl::StrAppend(&details, "  ", title, "  ", *text, "\n");
      }
    }
  }
  return absl::StrCat(
      table.ToText(), details, "\n",
      IsHealthy(doctor) ? "This kernel can be used.\n" : "This kernel cannot be used as it is.\n");
}

template <typename Answer>
std::string RenderAnswer(Output output, const Answer& answer) {
  return output == Output::kJson ? Dump(ToJson(answer)) : ToTable(answer);
}

std::string WaitingText(uint64_t ends, const std::string& whose, uint64_t unread_bytes) {
  return absl::StrCat("waiting for ", Counted(ends, "connection end", "connection ends"), " of ",
                      whose, ": ", Counted(unread_bytes, "byte", "bytes"), " unread\n");
}

}  // namespace

std::string Render(Output output, const v1::GetStatusResponse& status) {
  return RenderAnswer(output, status);
}
std::string Render(Output output, const v1::ListPodsResponse& pods) {
  return RenderAnswer(output, pods);
}
std::string Render(Output output, const v1::ListPairsResponse& pairs) {
  return RenderAnswer(output, pairs);
}
std::string Render(Output output, const v1::RunDoctorResponse& doctor, bool in_full) {
  return output == Output::kJson ? Dump(ToJson(doctor)) : ToTable(doctor, in_full);
}

bool IsHealthy(const v1::RunDoctorResponse& doctor) {
  return std::none_of(doctor.probes().begin(), doctor.probes().end(), [](const v1::Probe& probe) {
    return probe.verdict() == v1::PROBE_VERDICT_FATAL;
  });
}

std::string DrainProgressText(const v1::DrainResponse& progress) {
  std::string text;
  uint64_t told = 0;
  for (const v1::WaitingPod& pod : progress.waiting_pods()) {
    absl::StrAppend(&text,
                    WaitingText(pod.ends(), absl::StrCat("pod ", pod.uid()), pod.unread_bytes()));
    told += pod.ends();
  }
  if (told < progress.ends()) {  // the agent names a few pods only
    absl::StrAppend(&text,
                    WaitingText(progress.ends(), Counted(progress.pods(), "pod", "pods in all"),
                                progress.unread_bytes()));
  }
  for (const v1::WaitingEnd& end : progress.examples()) {
    absl::StrAppend(&text, "  for example the ", RoleOf(end), " on port ", end.local_port(),
                    ", connected with port ", end.remote_port(), ": ",
                    Counted(end.unread_bytes(), "byte", "bytes"), " unread\n");
  }
  if (text.empty()) {
    absl::StrAppend(&text, "letting go of ", Counted(progress.pods(), "pod", "pods"), "\n");
  }
  return text;
}

std::string RenderDrain(Output output, bool drained, const v1::DrainResponse& last) {
  if (output == Output::kTable) {
    return drained ? "Drained: every connection is plain TCP and nothing is pinned.\n" : "";
  }
  Json waiting = Json::array();
  for (const v1::WaitingPod& pod : last.waiting_pods()) {
    waiting.push_back(
        {{"pod", pod.uid()}, {"ends", pod.ends()}, {"unreadBytes", pod.unread_bytes()}});
  }
  Json examples = Json::array();
  for (const v1::WaitingEnd& end : last.examples()) {
    examples.push_back({{"role", RoleOf(end)},
                        {"localPort", end.local_port()},
                        {"remotePort", end.remote_port()},
                        {"unreadBytes", end.unread_bytes()}});
  }
  return Dump({{"drained", drained},
               {"pods", last.pods()},
               {"ends", last.ends()},
               {"unreadBytes", last.unread_bytes()},
               {"waiting", std::move(waiting)},
               {"examples", std::move(examples)}});
}

}  // namespace shunt::ctl
