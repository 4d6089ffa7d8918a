// SPDX-License-Identifier: Apache-2.0
#include "agent/config/config.h"

#include <fcntl.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <functional>
#include <map>
#include <sstream>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "agent/base/status.h"
#include "agent/base/unique_fd.h"
#include "kmod/uapi/shunt.h"
#include "yaml-cpp/eventhandler.h"
#include "yaml-cpp/yaml.h"

namespace shunt {
namespace {

constexpr char kApiVersion[] = "shunt.dev/v1alpha1";
constexpr char kKind[] = "AgentConfig";
constexpr char kPortAllowed[] = R"(a port from 1 to 65535, or a range "first-last")";
constexpr size_t kMaxUidLength = 63;
constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;
constexpr size_t kMaxShown = 60;  // of what was found, in an error

// Single-row Levenshtein distance.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitute});
    }
  }
  return row.back();
}

// Fit for one line of a log, whatever the file holds.
std::string Printable(std::string_view text) {
  std::string printable(text);
  for (char& c : printable) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) {
      c = '?';
    }
  }
  return printable;
}

std::string Shown(std::string_view text) {
  return absl::StrCat(Printable(text.substr(0, kMaxShown)), text.size() > kMaxShown ? "…" : "");
}

std::string Quoted(std::string_view text) { return absl::StrCat("\"", Shown(text), "\""); }

std::string Describe(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Scalar:
      return Quoted(node.Scalar());
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a map";
    default:
      return "nothing";
  }
}

std::string MarkText(const YAML::Mark& mark) {
  return absl::StrCat(mark.line + 1, ":", mark.column + 1);
}

// Walks a document, collects what is wrong in it, keeps the first by position.
class Reader {
 public:
  explicit Reader(std::string_view file) : file_(file) {}

  void Refuse(const YAML::Mark& mark, const std::string& path, const std::string& problem) {
    if (mark.line < 0) {
      return Refuse({0, 0}, path, problem);
    }
    Refuse({mark.line, mark.column}, path, problem);
  }

  void RefuseValue(const YAML::Node& node, const std::string& path, const std::string& allowed) {
    Refuse(node.Mark(), path, absl::StrCat("found ", Describe(node), "; allowed: ", allowed));
  }

  // A map with known fields only, each once. Calls `field` for each known one.
  void Map(const YAML::Node& node, const std::string& path, const std::vector<std::string>& known,
           const std::function<void(const std::string&, const YAML::Node&)>& field) {
    if (!node.IsMap()) {
      return RefuseValue(node, path,
                         absl::StrCat("a map with the fields ", absl::StrJoin(known, ", ")));
    }
    std::map<std::string, YAML::Mark> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) {
        Refuse(entry.first.Mark(), path,
               absl::StrCat("found ", Describe(entry.first),
                            " as a field's name; allowed: ", absl::StrJoin(known, ", ")));
        continue;
      }
      const std::string& name = entry.first.Scalar();
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        Refuse(entry.first.Mark(), Join(path, Shown(name)), Unknown(name, known));
        continue;
      }
      const auto [first, fresh] = seen.emplace(name, entry.first.Mark());
      if (!fresh) {
        Refuse(entry.first.Mark(), Join(path, name),
               absl::StrCat("found twice, first at ", MarkText(first->second),
                            "; allowed: once; remove one"));
        continue;
      }
      field(Join(path, name), entry.second);
    }
  }

  // A non-empty list of at most `limit` items.
  void List(const YAML::Node& node, const std::string& path, size_t limit,
            const std::function<void(const std::string&, const YAML::Node&)>& item) {
    if (!node.IsSequence()) {
      return RefuseValue(node, path, "a list");
    }
    if (node.size() > limit) {
      return Refuse(node.Mark(), path,
                    absl::StrCat("found ", node.size(), " items; allowed: at most ", limit));
    }
    size_t index = 0;
    for (const YAML::Node& element : node) {
      item(absl::StrCat(path, "[", index++, "]"), element);
    }
  }

  // The scalar's text if `good` accepts it.
  std::optional<std::string> Text(const YAML::Node& node, const std::string& path,
                                  const std::string& allowed,
                                  const std::function<bool(const std::string&)>& good) {
    if (!node.IsScalar() || !good(node.Scalar())) {
      RefuseValue(node, path, allowed);
      return std::nullopt;
    }
    return node.Scalar();
  }

  absl::Status Verdict() const {
    if (!problem_.has_value()) {
      return absl::OkStatus();
    }
    const auto& [line, column, text] = *problem_;
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ":", line + 1, ":", column + 1, ": ", text));
  }

  static std::string Join(const std::string& path, const std::string& name) {
    return path.empty() ? name : absl::StrCat(path, ".", name);
  }

 private:
  void Refuse(std::pair<int, int> place, const std::string& path, const std::string& problem) {
    const std::string text = path.empty() ? problem : absl::StrCat(path, ": ", problem);
    std::tuple<int, int, std::string> candidate{place.first, place.second, text};
    if (!problem_.has_value() || std::tie(std::get<0>(candidate), std::get<1>(candidate)) <
                                     std::tie(std::get<0>(*problem_), std::get<1>(*problem_))) {
      problem_ = std::move(candidate);
    }
  }

  static std::string Unknown(const std::string& name, const std::vector<std::string>& known) {
    std::string text = absl::StrCat("unknown field; allowed: ", absl::StrJoin(known, ", "));
    for (const std::string& candidate : known) {
      if (EditDistance(name, candidate) <= 2) {
        absl::StrAppend(&text, "; did you mean ", candidate, "?");
        break;
      }
    }
    return text;
  }

  const std::string file_;
  std::optional<std::tuple<int, int, std::string>> problem_;
};

bool IsAbsolutePath(const std::string& path) {
  if (path.size() < 2 || path[0] != '/' || path.find('\0') != std::string::npos) {
    return false;
  }
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part == "..") {
      return false;
    }
  }
  return true;
}

// One spelling for all of "/a/b", "//a/b/", "/a/./b".
std::string Plainest(const std::string& path) {
  std::vector<std::string> parts = absl::StrSplit(path, '/', absl::SkipEmpty());
  parts.erase(std::remove(parts.begin(), parts.end(), "."), parts.end());
  return absl::StrCat("/", absl::StrJoin(parts, "/"));
}

bool ParsePort(const std::string& text, uint16_t* port) {
  uint32_t number = 0;
  if (text.empty() || text.size() > 5 ||
      !std::all_of(text.begin(), text.end(), absl::ascii_isdigit) ||
      !absl::SimpleAtoi(text, &number) || number < 1 || number > 65535) {
    return false;
  }
  *port = static_cast<uint16_t>(number);
  return true;
}

bool IsHostAndPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  uint16_t port = 0;
  return colon != std::string::npos && colon > 0 &&
         std::all_of(address.begin(), address.end(), absl::ascii_isgraph) &&
         ParsePort(address.substr(colon + 1), &port);
}

// Port 0: any free one.
bool IsListenAddress(const std::string& address) {
  return IsHostAndPort(address) || (absl::EndsWith(address, ":0") &&
                                    IsHostAndPort(address.substr(0, address.size() - 1) + "1"));
}

// It names a pin and may hold no slash; bpffs pins no "." and "..".
bool IsUid(const std::string& uid) {
  return !uid.empty() && uid.size() <= kMaxUidLength && uid != "." && uid != ".." &&
         std::all_of(uid.begin(), uid.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-';
         });
}

std::optional<PortRange> ParseRange(const std::string& text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('-', 1));
  PortRange range;
  const bool is_range = text.find('-') != std::string::npos;
  if (!ParsePort(parts.first, &range.first)) {
    return std::nullopt;
  }
  if (!is_range) {
    range.last = range.first;
  } else if (!ParsePort(parts.second, &range.last) || range.last < range.first) {
    return std::nullopt;
  }
  return range;
}

void ReadPorts(Reader* reader, const YAML::Node& node, const std::string& path, PodSpec* pod) {
  reader->List(node, path, 65535, [&](const std::string& at, const YAML::Node& item) {
    if (item.IsScalar()) {
      if (const std::optional<PortRange> range = ParseRange(item.Scalar()); range.has_value()) {
        pod->ports.push_back(*range);
        return;
      }
    }
    reader->RefuseValue(item, at, kPortAllowed);
  });
  if (node.IsSequence() && node.size() == 0) {
    reader->Refuse(node.Mark(), path,
                   absl::StrCat("found an empty list; allowed: at least one of ", kPortAllowed));
  }
  if (const size_t ranges = Normalized(pod->ports).size(); ranges > SHUNT_MAX_PORT_RANGES) {
    reader->Refuse(node.Mark(), path,
                   absl::StrCat("found ", ranges, " separate ranges; allowed: at most ",
                                SHUNT_MAX_PORT_RANGES, "; join neighbouring ports to ranges"));
  }
}

// What must be unique among pods: the value, and where it was seen first.
using Seen = std::map<std::string, YAML::Mark>;

void ReadPod(Reader* reader, const YAML::Node& node, const std::string& path, Seen* uids,
             Seen* cgroups, PodSpec* pod) {
  bool has_uid = false;
  bool has_ports = false;
  const auto once = [reader](Seen* seen, const std::string& key, const YAML::Node& value,
                             const std::string& at) {
    const auto [first, fresh] = seen->emplace(key, value.Mark());
    if (!fresh) {
      reader->Refuse(
          value.Mark(), at,
          absl::StrCat("found ", Quoted(value.Scalar()), ", which another pod has at line ",
                       first->second.line + 1, "; allowed: one of its own for each pod"));
    }
  };
  reader->Map(
      node, path, {"uid", "cgroup", "ports", "proxyUid"},
      [&](const std::string& at, const YAML::Node& value) {
        if (absl::EndsWith(at, ".uid")) {
          has_uid = true;
          const auto uid = reader->Text(
              value, at, "1 to 63 letters, digits, '.', '_' or '-', such as the pod's UID", IsUid);
          if (uid.has_value()) {
            pod->uid = *uid;
            once(uids, *uid, value, at);
          }
        } else if (absl::EndsWith(at, ".cgroup")) {
          const auto cgroup =
              reader->Text(value, at, "an absolute path of a cgroup v2 directory, without \"..\"",
                           IsAbsolutePath);
          if (cgroup.has_value()) {
            pod->cgroup = *cgroup;
            once(cgroups, Plainest(*cgroup), value, at);
          }
        } else if (absl::EndsWith(at, ".ports")) {
          has_ports = true;
          ReadPorts(reader, value, at, pod);
        } else {
          uint32_t proxy_uid = 0;
          if (value.IsScalar() && absl::SimpleAtoi(value.Scalar(), &proxy_uid) &&
              absl::ascii_isdigit(static_cast<unsigned char>(value.Scalar()[0])) &&
              proxy_uid != UINT32_MAX) {
            pod->proxy_uid = proxy_uid;
          } else {
            reader->RefuseValue(value, at, "a user id from 0 to 4294967294");
          }
        }
      });
  if (node.IsMap() && !has_uid) {
    reader->Refuse(node.Mark(), path, "uid is missing; give each pod one");
  }
  if (node.IsMap() && !has_ports) {
    reader->Refuse(
        node.Mark(), path,
        absl::StrCat("ports is missing; list the server ports to accelerate, each ", kPortAllowed));
  }
}

void ReadStatic(Reader* reader, const YAML::Node& node, const std::string& path,
                AgentConfig* config) {
  reader->Map(node, path, {"pods"}, [&](const std::string& pods_path, const YAML::Node& pods) {
    if (pods.IsNull()) {
      return;  // "pods:" with nothing below: none
    }
    Seen uids;
    Seen cgroups;
    reader->List(pods, pods_path, kMaxPods, [&](const std::string& at, const YAML::Node& pod) {
      config->pods.emplace_back();
      ReadPod(reader, pod, at, &uids, &cgroups, &config->pods.back());
    });
  });
}

void ReadAdmin(Reader* reader, const YAML::Node& node, const std::string& path,
               AgentConfig* config) {
  reader->Map(
      node, path, {"socket", "metrics"}, [&](const std::string& at, const YAML::Node& value) {
        if (absl::EndsWith(at, ".socket")) {
          const auto socket =
              reader->Text(value, at,
                           absl::StrCat("an absolute path of at most ", kMaxSocketPath,
                                        " bytes (a unix socket's name), without \"..\""),
                           [](const std::string& text) {
                             return IsAbsolutePath(text) && text.size() <= kMaxSocketPath;
                           });
          config->admin_socket = socket.value_or("");
        } else {
          config->metrics_address =
              reader->Text(value, at, "host:port, such as \"127.0.0.1:9464\"", IsListenAddress)
                  .value_or("");
        }
      });
}

void ReadController(Reader* reader, const YAML::Node& node, const std::string& path,
                    AgentConfig* config) {
  ControllerConfig controller;
  bool has_tls = false;
  reader->Map(node, path, {"address", "tls"}, [&](const std::string& at, const YAML::Node& value) {
    if (absl::EndsWith(at, ".address")) {
      controller.address =
          reader->Text(value, at, "host:port of the controller", IsHostAndPort).value_or("?");
      return;
    }
    has_tls = true;
    reader->Map(value, at, {"ca", "cert", "key"},
                [&](const std::string& file_at, const YAML::Node& file) {
                  const std::string text =
                      reader->Text(file, file_at, "an absolute path of a PEM file", IsAbsolutePath)
                          .value_or("?");
                  (absl::EndsWith(file_at, ".ca")     ? controller.ca
                   : absl::EndsWith(file_at, ".cert") ? controller.cert
                                                      : controller.key) = text;
                });
    if (value.IsMap() &&
        (controller.ca.empty() || controller.cert.empty() || controller.key.empty())) {
      reader->Refuse(value.Mark(), at, "incomplete; give ca, cert and key");
    }
  });
  if (node.IsMap() && (controller.address.empty() || !has_tls)) {
    reader->Refuse(node.Mark(), path, "incomplete; give address and tls");
  }
  config->controller = std::move(controller);
}

void ReadDocument(Reader* reader, const YAML::Node& document, AgentConfig* config) {
  bool has_version = false;
  bool has_kind = false;
  bool has_static = false;
  YAML::Mark controller_mark;
  reader->Map(
      document, "", {"apiVersion", "kind", "engine", "bpffs", "admin", "controller", "static"},
      [&](const std::string& at, const YAML::Node& value) {
        if (at == "apiVersion") {
          has_version = true;
          reader->Text(value, at, Quoted(kApiVersion),
                       [](const std::string& text) { return text == kApiVersion; });
        } else if (at == "kind") {
          has_kind = true;
          reader->Text(value, at, Quoted(kKind),
                       [](const std::string& text) { return text == kKind; });
        } else if (at == "engine") {
          const auto engine = reader->Text(
              value, at, "auto, sockhash, kmod or none",
              [](const std::string& text) { return EngineChoiceFromString(text).has_value(); });
          config->engine =
              engine.has_value() ? *EngineChoiceFromString(*engine) : EngineChoice::kNone;
        } else if (at == "bpffs") {
          config->bpffs =
              reader
                  ->Text(value, at, "an absolute path of a directory on a bpffs, without \"..\"",
                         IsAbsolutePath)
                  .value_or("");
        } else if (at == "admin") {
          ReadAdmin(reader, value, at, config);
        } else if (at == "controller") {
          controller_mark = value.Mark();
          ReadController(reader, value, at, config);
        } else {
          has_static = true;
          ReadStatic(reader, value, at, config);
        }
      });
  if (!document.IsMap()) {
    return;
  }
  if (!has_version) {
    reader->Refuse(document.Mark(), "",
                   absl::StrCat("apiVersion is missing; add apiVersion: ", kApiVersion));
  }
  if (!has_kind) {
    reader->Refuse(document.Mark(), "", absl::StrCat("kind is missing; add kind: ", kKind));
  }
  if (has_static && config->controller.has_value()) {
    reader->Refuse(controller_mark, "controller",
                   "found beside static; allowed: one of the two; remove one");
  }
  if (!has_static && !config->controller.has_value()) {
    reader->Refuse(document.Mark(), "",
                   "no source of pods; add static: with the pods, or controller:");
  }
}

// Looks over a file before a tree is made of it. Two things would let a small
// file cost without bound: an alias repeats a whole list at every use, and where
// text follows a document yaml-cpp may give out empty documents for ever (", "),
// so YAML::LoadAll() does not come back.
class Outline : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override { start_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { See(mark, anchor); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override { See(mark, anchor); }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                const std::string&) override {
    See(mark, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    See(mark, anchor);
  }
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    See(mark, anchor);
  }
  void OnMapEnd() override {}

  const YAML::Mark& start() const { return start_; }                   // of the last document
  const std::optional<YAML::Mark>& anchor() const { return anchor_; }  // the first

 private:
  void See(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor && !anchor_.has_value()) {
      anchor_ = mark;
    }
  }

  YAML::Mark start_;
  std::optional<YAML::Mark> anchor_;
};

}  // namespace

absl::StatusOr<AgentConfig> ParseConfig(std::string_view text, std::string_view file_name) {
  const std::string file(file_name);
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrCat(file, ":1:1: found ", text.size(),
                                                   " bytes; allowed: at most ", kMaxConfigBytes));
  }
  AgentConfig config;
  Reader reader(file_name);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    Outline outline;
    if (parser.HandleNextDocument(outline) && parser.HandleNextDocument(outline)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ":", MarkText(outline.start()),
                                                     ": found a second document; allowed: one"));
    }
    if (outline.anchor().has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ":", MarkText(*outline.anchor()),
                       ": found an anchor or alias; allowed: plain values; write the value out"));
    }
    ReadDocument(&reader, YAML::Load(std::string(text)), &config);
  } catch (const YAML::Exception& error) {
    const YAML::Mark mark = error.mark.is_null() ? YAML::Mark() : error.mark;
    return absl::InvalidArgumentError(absl::StrCat(file, ":", MarkText(mark),
                                                   ": not YAML: ", Printable(error.msg),
                                                   "; mend the syntax at this place"));
  }
  if (absl::Status verdict = reader.Verdict(); !verdict.ok()) {
    return verdict;
  }
  return config;
}

absl::StatusOr<AgentConfig> LoadConfig(const std::string& path) {
  const std::string context = absl::StrCat("reading configuration ", path);
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) {
    return ErrnoStatus(errno, context);
  }
  std::string text;
  std::array<char, 16384> chunk;
  while (text.size() <= kMaxConfigBytes) {
    const ssize_t got = read(fd.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return ErrnoStatus(errno, context);
    }
    if (got == 0) {
      break;
    }
    text.append(chunk.data(), static_cast<size_t>(got));
  }
  return ParseConfig(text, path);
}

}  // namespace shunt
