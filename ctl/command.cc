// SPDX-License-Identifier: Apache-2.0
#include "ctl/command.h"

#include <bpf/libbpf.h>
#include <fcntl.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "agent/base/status.h"
#include "agent/observe/probe_message.h"
#include "agent/observe/unix_socket.h"
#include "agent/probe/probe.h"
#include "ctl/render.h"
#include "grpc/grpc.h"
#include "grpcpp/create_channel_posix.h"
#include "shunt/v1/admin.grpc.pb.h"

namespace shunt::ctl {
namespace {

using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr int kOk = 0;
constexpr int kFailed = 1;
constexpr int kUsageOrNoAgent = 2;

constexpr seconds kPatience{30};
constexpr seconds kDoctorPatience{60};  // it tries every behaviour on real sockets
constexpr seconds kProgressInterval{1};
constexpr uint32_t kMaxPairs = 10000;  // ListPairsRequest.limit

struct Arguments {
  std::string socket = "/run/shunt/agent.sock";
  Output output = Output::kTable;
  std::string pod;
  uint32_t limit = 0;            // 0: the agent's default
  uint32_t timeout_seconds = 0;  // 0: none
  bool all = false;
};

std::string WhatToDo(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kPermissionDenied:
      return "run as root";
    case absl::StatusCode::kInvalidArgument:
      return "";  // says so itself
    default:
      return "start shunt-agent on this node, or name its admin.socket with --socket";
  }
}

absl::StatusOr<std::unique_ptr<v1::AdminService::Stub>> Connect(const std::string& socket) {
  absl::StatusOr<UniqueFd> fd = ConnectSocket(socket);
  if (!fd.ok()) {
    const std::string to_do = WhatToDo(fd.status());
    return absl::Status(fd.status().code(),
                        absl::StrCat("no agent on ", socket, ": ", fd.status().message(),
                                     to_do.empty() ? "" : ": ", to_do));
  }
  const int owned_by_grpc = fcntl(fd->get(), F_DUPFD_CLOEXEC, 0);
  if (owned_by_grpc < 0) {
    return ErrnoStatus(errno, "duplicating a descriptor");
  }
  // The library's shutdown may wait ten seconds for a poller of its own: never
  // shut it down, the process ends anyway.
  grpc_init();
  return v1::AdminService::NewStub(grpc::CreateInsecureChannelFromFd("localhost", owned_by_grpc));
}

std::string Explain(const grpc::Status& status, seconds patience) {
  switch (status.error_code()) {
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::StrCat("the agent did not answer within ", patience.count(),
                          " s: look at its log");
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::StrCat("the agent does not know this request (", status.error_message(),
                          "): use the shuntctl of its version");
    default:
      return status.error_message();
  }
}

int ShowDoctor(const Arguments& arguments, const v1::RunDoctorResponse& doctor, std::ostream& out) {
  out << Render(arguments.output, doctor, arguments.all);
  return IsHealthy(doctor) ? kOk : kFailed;
}

// The doctor without an agent: with what this process may do itself.
int ExamineHere(const Arguments& arguments, const absl::Status& no_agent, std::ostream& out,
                std::ostream& err) {
  libbpf_set_print(nullptr);  // what was refused is in the rows
  err << "shuntctl: " << no_agent.message()
      << "\nshuntctl: looking from here; the pods' cgroups are not known\n";
  const absl::StatusOr<ProbeReport> report = RunProbes(ProbeScope::kAll);
  if (!report.ok()) {
    err << "shuntctl: " << report.status().message() << "\n";
    return kFailed;
  }
  v1::RunDoctorResponse doctor;
  for (const ProbeView& row : report->rows) {
    *doctor.add_probes() = ToProto(row);
  }
  return ShowDoctor(arguments, doctor, out);
}

class Commands {
 public:
  Commands(const Arguments& arguments, v1::AdminService::Stub* agent, std::ostream& out,
           std::ostream& err)
      : arguments_(arguments), agent_(agent), out_(out), err_(err) {}

  int Status() {
    v1::GetStatusResponse response;
    return Ask(&v1::AdminService::Stub::GetStatus, {}, kPatience, &response);
  }

  int Pods() {
    v1::ListPodsRequest request;
    request.set_pod_uid(arguments_.pod);
    v1::ListPodsResponse response;
    return Ask(&v1::AdminService::Stub::ListPods, request, kPatience, &response);
  }

  int Pairs() {
    v1::ListPairsRequest request;
    request.set_pod_uid(arguments_.pod);
    request.set_limit(arguments_.limit);
    v1::ListPairsResponse response;
    return Ask(&v1::AdminService::Stub::ListPairs, request, kPatience, &response);
  }

  int Doctor() {
    v1::RunDoctorResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kDoctorPatience);
    const grpc::Status status = agent_->RunDoctor(&context, {}, &response);
    if (!status.ok()) {
      err_ << "shuntctl: " << Explain(status, kDoctorPatience) << "\n";
      return kFailed;
    }
    return ShowDoctor(arguments_, response, out_);
  }

  int Drain() {
    const seconds timeout{arguments_.timeout_seconds};
    grpc::ClientContext context;
    if (timeout.count() > 0) {
      context.set_deadline(std::chrono::system_clock::now() + timeout);
    }
    const auto stream = agent_->Drain(&context, {});
    v1::DrainResponse last;
    auto quiet_until = steady_clock::now();
    while (stream->Read(&last)) {
      if (!last.done() && steady_clock::now() >= quiet_until) {
        err_ << DrainProgressText(last) << std::flush;
        quiet_until = steady_clock::now() + kProgressInterval;
      }
    }
    const grpc::Status status = stream->Finish();
    const bool drained = status.ok() && last.done();
    switch (status.error_code()) {
      case grpc::StatusCode::OK:
        if (!drained) {
          err_ << "shuntctl: the agent ended the drain without saying that it is done: look at its "
                  "log\n";
        }
        break;
      case grpc::StatusCode::DEADLINE_EXCEEDED:
        err_ << "shuntctl: not drained within " << timeout.count() << " s:\n"
             << DrainProgressText(last)
             << "shuntctl: let those programs read or close, then drain again\n";
        break;
      case grpc::StatusCode::FAILED_PRECONDITION:
      case grpc::StatusCode::UNIMPLEMENTED:
        err_ << "shuntctl: " << Explain(status, timeout) << "\n";
        return kFailed;  // it never began: there is no result to show
      default:
        err_ << "shuntctl: drain stopped: " << status.error_message()
             << ": see that the agent runs, then drain again\n";
        break;
    }
    out_ << RenderDrain(arguments_.output, drained, last);
    return drained ? kOk : kFailed;
  }

 private:
  template <typename Request, typename Response>
  int Ask(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                         Response*),
          const Request& request, seconds patience, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + patience);
    const grpc::Status status = (agent_->*method)(&context, request, response);
    if (!status.ok()) {
      err_ << "shuntctl: " << Explain(status, patience) << "\n";
      return kFailed;
    }
    out_ << Render(arguments_.output, *response);
    return kOk;
  }

  const Arguments& arguments_;
  v1::AdminService::Stub* const agent_;
  std::ostream& out_;
  std::ostream& err_;
};

}  // namespace

int Run(int argc, const char* const* argv, std::ostream& out, std::ostream& err) {
  Arguments arguments;
  int (Commands::*command)() = nullptr;

  CLI::App app("Shows what the Shunt agent of this node accelerates, what not, and why.",
               "shuntctl");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--socket", arguments.socket, "The agent's admin.socket")->capture_default_str();
  std::string output = "table";
  app.add_option("--output", output, "table for people, json for programs")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();

  const auto add = [&](const char* name, const char* description, int (Commands::*run)()) {
    CLI::App* verb = app.add_subcommand(name, description);
    verb->callback([&command, run] { command = run; });
    return verb;
  };
  add("status", "The node in one look", &Commands::Status);
  CLI::App* pods = add("pods", "The pods of this node and where they stand", &Commands::Pods);
  CLI::App* pairs = add("pairs", "The accelerated connections, busiest first", &Commands::Pairs);
  CLI::App* doctor =
      add("doctor", "Tries what this kernel does, on real sockets; 1 if something is fatal",
          &Commands::Doctor);
  doctor->add_flag("--all", arguments.all, "In a table, tell in full also what is ok");
  CLI::App* drain = add(
      "drain", "Returns every connection to plain TCP without losing a byte and unpins everything",
      &Commands::Drain);
  for (CLI::App* verb : {pods, pairs}) {
    verb->add_option("--pod", arguments.pod, "Only the pod with this uid");
  }
  pairs->add_option("--limit", arguments.limit, "At most so many pairs; 1000 if not given")
      ->check(CLI::Range(1u, kMaxPairs));
  drain
      ->add_option("--timeout", arguments.timeout_seconds,
                   "Give up after so many seconds; never, if not given")
      ->check(CLI::Range(1u, 86400u));

  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError&) {
    // CLI11 misses a verb before it looks at the word that stands there.
    const std::vector<std::string> words = app.remaining();
    err << "shuntctl: " << (words.empty() ? "no verb" : "no such verb: " + words.front())
        << ": give one of status, pods, pairs, doctor, drain\n";
    return kUsageOrNoAgent;
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, err) == 0 ? kOk : kUsageOrNoAgent;
  }
  arguments.output = output == "json" ? Output::kJson : Output::kTable;

  const auto agent = Connect(arguments.socket);
  if (command == &Commands::Doctor &&
      (absl::IsNotFound(agent.status()) || absl::IsUnavailable(agent.status()))) {
    return ExamineHere(arguments, agent.status(), out, err);
  }
  if (!agent.ok()) {
    err << "shuntctl: " << agent.status().message() << "\n";
    return kUsageOrNoAgent;
  }
  return (Commands(arguments, agent->get(), out, err).*command)();
}

}  // namespace shunt::ctl
