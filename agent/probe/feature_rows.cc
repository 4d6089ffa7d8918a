// SPDX-License-Identifier: Apache-2.0
//
// What this kernel lets a program call, and where it lets one be attached: one
// tiny program each. An answer of its own per feature tells what is missing
// where `programs_load` tells only that something is.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/btf.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/base/unique_fd.h"
#include "agent/probe/mounts.h"
#include "agent/probe/row.h"
#include "agent/probe/tiny_program.h"

namespace shunt {
namespace {

// An answer that lets sockets and calls pass, for every type used here.
constexpr __s32 kPass = 1;

std::string Refused(const std::string& what, int error, const std::string& verifier = "") {
  return absl::StrCat(what, ": ", Errno(error), verifier.empty() ? "" : " (", verifier,
                      verifier.empty() ? "" : ")");
}

Finding NoSuchType(const std::string& name) {
  return {Found::kOtherwise, absl::StrCat("this kernel has no ", name)};
}

// ---- helpers: a program that calls one loads or not ---------------------------

Finding Loads(const TinyProgram& program) {
  const LoadResult result = LoadTiny(program);
  return result.program.valid()
             ? Finding{Found::kAsWanted, "loaded"}
             : Finding{Found::kOtherwise, Refused("loading", result.error, result.refusal)};
}

TinyProgram SkMsg(Code code) {
  return {BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, 0, std::move(code)};
}
TinyProgram SockOps(Code code) {
  return {BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, 0, std::move(code)};
}

// R2 = msg->sk, not null from here on.
Code OwnSocket() {
  return Concat({Load64(BPF_REG_2, BPF_REG_1, offsetof(struct sk_msg_md, sk)),
                 LeaveIfNull(BPF_REG_2, kPass)});
}

Finding NetnsCookieInSockOps(const ProbeContext&) {
  return Loads(SockOps(Concat({Call(BPF_FUNC_get_netns_cookie), Return(kPass)})));
}

Finding NetnsCookieInSkMsg(const ProbeContext&) {
  return Loads(SkMsg(Concat({Call(BPF_FUNC_get_netns_cookie), Return(kPass)})));
}

Finding OwnSocketInSkMsg(const ProbeContext&) {
  return Loads(SkMsg(Concat({OwnSocket(), Return(kPass)})));
}

Finding FullSocketInSkMsg(const ProbeContext&) {
  return Loads(SkMsg(Concat(
      {OwnSocket(), Move(BPF_REG_1, BPF_REG_2), Call(BPF_FUNC_skc_to_tcp_sock), Return(kPass)})));
}

Finding StorageInSkMsg(const ProbeContext&) {
  const UniqueFd map = MakeSocketStorage();
  if (!map.valid()) {
    return {Found::kOtherwise, Refused("making a map of socket storage", errno)};
  }
  return Loads(SkMsg(Concat({OwnSocket(), MapFd(BPF_REG_1, map.get()), Set(BPF_REG_3, 0),
                             Set(BPF_REG_4, 0), Call(BPF_FUNC_sk_storage_get), Return(kPass)})));
}

Finding CgroupStorageInSockOps(const ProbeContext&) {
  const UniqueFd map(bpf_map_create(BPF_MAP_TYPE_CGROUP_STORAGE, "probe_tiny", sizeof(__u64),
                                    sizeof(__u64), 0, nullptr));
  if (!map.valid()) {
    return {Found::kOtherwise, Refused("making a map of cgroup storage", errno)};
  }
  return Loads(SockOps(Concat({MapFd(BPF_REG_1, map.get()), Set(BPF_REG_2, 0),
                               Call(BPF_FUNC_get_local_storage), Return(kPass)})));
}

Finding KernelReadsInSkMsg(const ProbeContext&) {
  return Loads(SkMsg(Concat({StoreOnStack(-8, 0), StackAddress(BPF_REG_1, -8), Set(BPF_REG_2, 8),
                             Set(BPF_REG_3, 0), Call(BPF_FUNC_probe_read_kernel), Return(kPass)})));
}

Finding DirectLoadsInSkMsg(const ProbeContext& context) {
  const __u32 function = context.types->Find("bpf_rdonly_cast", BTF_KIND_FUNC);
  const __u32 type = context.types->Find("sock", BTF_KIND_STRUCT);
  if (function == 0 || type == 0) {
    return NoSuchType("bpf_rdonly_cast()");
  }
  return Loads(SkMsg(Concat({Set(BPF_REG_1, 0), Set(BPF_REG_2, static_cast<__s32>(type)),
                             CallKernel(function), Return(kPass)})));
}

Finding RingBufferInSockOps(const ProbeContext&) {
  const UniqueFd map(bpf_map_create(BPF_MAP_TYPE_RINGBUF, "probe_tiny", 0, 0,
                                    static_cast<__u32>(getpagesize()), nullptr));
  if (!map.valid()) {
    return {Found::kOtherwise, Refused("making a ring buffer", errno)};
  }
  return Loads(SockOps(Concat({MapFd(BPF_REG_1, map.get()), Set(BPF_REG_2, 0),
                               Call(BPF_FUNC_ringbuf_query), Return(kPass)})));
}

// ---- iterators and tracing: loaded, attached, let go at once --------------------

// What a tracing program is made for, by the name of its type.
Finding Attaches(const ProbeContext& context, enum bpf_attach_type attach, const std::string& type,
                 __u32 kind, const std::function<int(int program)>& attach_to, Code code) {
  const __u32 target = context.types->Find(type, kind);
  if (target == 0) {
    return NoSuchType(type);
  }
  const LoadResult result = LoadTiny({BPF_PROG_TYPE_TRACING, attach, target, std::move(code)});
  if (!result.program.valid()) {
    return {Found::kOtherwise, Refused("loading", result.error, result.refusal)};
  }
  const UniqueFd link(attach_to(result.program.get()));
  return link.valid() ? Finding{Found::kAsWanted, "loaded and attached"}
                      : Finding{Found::kOtherwise, Refused("loaded, but attaching", errno)};
}

int AttachTracing(int program) { return bpf_raw_tracepoint_open(nullptr, program); }
int AttachIterator(int program) { return bpf_link_create(program, 0, BPF_TRACE_ITER, nullptr); }

Probe Tracepoint(const char* name) {
  return [=](const ProbeContext& context) {
    return Attaches(context, BPF_TRACE_RAW_TP, absl::StrCat("btf_trace_", name), BTF_KIND_TYPEDEF,
                    AttachTracing, Return(0));
  };
}

Probe Function(enum bpf_attach_type attach, const char* name) {
  return [=](const ProbeContext& context) {
    return Attaches(context, attach, name, BTF_KIND_FUNC, AttachTracing, Return(0));
  };
}

Finding Iterates(const ProbeContext& context, const char* type, Code code) {
  return Attaches(context, BPF_TRACE_ITER, type, BTF_KIND_FUNC, AttachIterator, std::move(code));
}

// The contexts of iterators: after two pointers, or as uapi and commit say.
constexpr __s16 kIterTcpSocket = 8;      // struct bpf_iter__tcp
constexpr __s16 kIterTaskFileFile = 24;  // struct bpf_iter__task_file

Finding IterateTcp(const ProbeContext& context) {
  return Iterates(context, "bpf_iter_tcp", Return(0));
}

Finding EnterFromIterTcp(const ProbeContext& context) {
  const UniqueFd map(bpf_map_create(BPF_MAP_TYPE_SOCKHASH, "probe_tiny", sizeof(__u64),
                                    sizeof(__u64), 1, nullptr));
  if (!map.valid()) {
    return {Found::kOtherwise, Refused("making a sockhash", errno)};
  }
  return Iterates(
      context, "bpf_iter_tcp",
      Concat({Load64(BPF_REG_3, BPF_REG_1, kIterTcpSocket), LeaveIfNull(BPF_REG_3, 0),
              StoreOnStack(-8, 0), StackAddress(BPF_REG_2, -8), MapFd(BPF_REG_1, map.get()),
              Set(BPF_REG_4, BPF_NOEXIST), Call(BPF_FUNC_map_update_elem), Return(0)}));
}

Finding SetOptionFromIterTcp(const ProbeContext& context) {
  return Iterates(context, "bpf_iter_tcp",
                  Concat({Load64(BPF_REG_1, BPF_REG_1, kIterTcpSocket), LeaveIfNull(BPF_REG_1, 0),
                          StoreOnStack(-8, 1), Set(BPF_REG_2, SOL_SOCKET),
                          Set(BPF_REG_3, SO_RCVLOWAT), StackAddress(BPF_REG_4, -8),
                          Set(BPF_REG_5, sizeof(int)), Call(BPF_FUNC_setsockopt), Return(0)}));
}

Finding SocketsOfTasks(const ProbeContext& context) {
  return Iterates(context, "bpf_iter_task_file",
                  Concat({Load64(BPF_REG_1, BPF_REG_1, kIterTaskFileFile),
                          LeaveIfNull(BPF_REG_1, 0), Call(BPF_FUNC_sock_from_file), Return(0)}));
}

// ---- links --------------------------------------------------------------------

Finding LinkSkMsg(const ProbeContext&) {
  const UniqueFd map(bpf_map_create(BPF_MAP_TYPE_SOCKHASH, "probe_tiny", sizeof(__u64),
                                    sizeof(__u64), 1, nullptr));
  const LoadResult result = LoadTiny(SkMsg(Return(kPass)));
  if (!map.valid() || !result.program.valid()) {
    return {Found::kOtherwise, Refused("loading", map.valid() ? result.error : errno)};
  }
  const UniqueFd link(
      bpf_link_create(result.program.get(), map.get(), BPF_SK_MSG_VERDICT, nullptr));
  return link.valid() ? Finding{Found::kAsWanted, "attached by a link"}
                      : Finding{Found::kOtherwise, Refused("attaching by a link", errno)};
}

// An empty cgroup of our own: attaching there touches nobody.
class ScratchCgroup {
 public:
  explicit ScratchCgroup(const std::string& mount) {
    static std::atomic<int> count = 0;
    path_ = absl::StrCat(mount, "/shunt-doctor-", getpid(), "-", count++);
    if (mkdir(path_.c_str(), 0700) != 0) {
      error_ = errno;
      return;
    }
    fd_.Reset(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  ~ScratchCgroup() {
    if (error_ == 0) {
      fd_.Reset();
      rmdir(path_.c_str());
    }
  }
  ScratchCgroup(const ScratchCgroup&) = delete;
  ScratchCgroup& operator=(const ScratchCgroup&) = delete;

  int fd() const { return fd_.get(); }
  int error() const { return error_; }

 private:
  std::string path_;
  UniqueFd fd_;
  int error_ = 0;
};

Finding LinkToCgroup(const TinyProgram& program) {
  const LoadResult result = LoadTiny(program);
  if (!result.program.valid()) {
    return {Found::kOtherwise, Refused("loading", result.error, result.refusal)};
  }
  const std::string mount = MountOf("cgroup2");
  if (mount.empty()) {
    return {Found::kNotHere, "loaded; attaching was not tried: no cgroup v2 is mounted here"};
  }
  const ScratchCgroup cgroup(mount);
  if (cgroup.error() != 0) {
    return {Found::kNotHere, absl::StrCat("loaded; attaching was not tried: making a cgroup below ",
                                          mount, ": ", Errno(cgroup.error()))};
  }
  const UniqueFd link(bpf_link_create(result.program.get(), cgroup.fd(), program.attach, nullptr));
  return link.valid()
             ? Finding{Found::kAsWanted, "loaded, and attached by a link to a scratch cgroup"}
             : Finding{Found::kOtherwise, Refused("loaded, but attaching by a link", errno)};
}

Finding LinkSockOps(const ProbeContext&) { return LinkToCgroup(SockOps(Return(kPass))); }

Finding LinkSetsockopt(const ProbeContext&) {
  return LinkToCgroup({BPF_PROG_TYPE_CGROUP_SOCKOPT, BPF_CGROUP_SETSOCKOPT, 0, Return(kPass)});
}

// ---- rows -----------------------------------------------------------------------

constexpr char kEngineNeeds[] = "use kernel 5.15 or later, or the kernel module; see programs_load";
constexpr char kTracepoints[] = "nothing: hazards are seen through the tracepoints that are there";

}  // namespace

std::vector<Row> FeatureRows() {
  const auto row = [](const char* name, const char* tried, const char* there, const char* missing,
                      const char* to_do, Probe find) {
    return Row{name,    "",    ProbeScope::kAll, kProbeDegraded, tried, there,
               missing, to_do, std::move(find),  false};
  };
  return {
      row("netns_cookie_in_sock_ops", "bpf_get_netns_cookie() in a sock_ops program (5.15)",
          "connections are told apart by network namespace",
          "connections of two pods could not be told apart", kEngineNeeds, NetnsCookieInSockOps),
      row("netns_cookie_in_sk_msg", "bpf_get_netns_cookie() in an sk_msg program (5.15)",
          "messages are told apart by network namespace",
          "messages of two pods could not be told apart", kEngineNeeds, NetnsCookieInSkMsg),
      row("msg_sk", "msg->sk in an sk_msg program (5.8)", "a message's own socket is known",
          "a message's own socket is not known", kEngineNeeds, OwnSocketInSkMsg),
      row("sk_storage_in_sk_msg", "bpf_sk_storage_get() in an sk_msg program (5.8)",
          "a socket carries its own state", "a socket cannot carry its own state", kEngineNeeds,
          StorageInSkMsg),
      row("skc_to_tcp_sock_in_sk_msg", "bpf_skc_to_tcp_sock() in an sk_msg program (5.10)",
          "a socket's sequence numbers can be read", "a socket's sequence numbers cannot be read",
          kEngineNeeds, FullSocketInSkMsg),
      row("local_storage_in_sock_ops", "bpf_get_local_storage() in a sock_ops program (4.19)",
          "a pod's policy lies with its cgroup", "a pod's policy cannot lie with its cgroup",
          kEngineNeeds, CgroupStorageInSockOps),
      row("ringbuf_in_sock_ops", "a ring buffer in a sock_ops program (5.8)",
          "the kernel side tells the agent what happens",
          "the kernel side cannot tell the agent what happens", kEngineNeeds, RingBufferInSockOps),
      row("probe_read_kernel_in_sk_msg", "bpf_probe_read_kernel() in an sk_msg program",
          "the peer's state can be read", "the peer's state cannot be read by a helper",
          "give the agent CAP_PERFMON, and boot without lockdown=confidentiality",
          KernelReadsInSkMsg),
      row("rdonly_cast_in_sk_msg", "bpf_rdonly_cast() in an sk_msg program (6.2)",
          "the peer's state is read by direct loads",
          "the peer's state is read by a helper, which costs more",
          "nothing: the engine uses bpf_probe_read_kernel() here", DirectLoadsInSkMsg),
      row("iter_tcp", "an iter/tcp program (5.9)", "the agent can list the node's TCP sockets",
          "the agent cannot list the node's TCP sockets",
          "nothing: connections older than the agent stay on TCP", IterateTcp),
      row("iter_tcp_enters_sockhash", "entering a socket into a sockhash from iter/tcp (5.10)",
          "connections older than the agent could be adopted",
          "connections older than the agent cannot be adopted",
          "nothing: connections older than the agent stay on TCP", EnterFromIterTcp),
      row("iter_tcp_setsockopt", "bpf_setsockopt(SO_RCVLOWAT) from iter/tcp (5.16)",
          "a reader that sleeps could be woken once its socket has left",
          "a reader that sleeps cannot be woken by the agent", "nothing: it is not relied on",
          SetOptionFromIterTcp),
      row("iter_task_file_sock_from_file",
          "bpf_sock_from_file() in an iter/task_file program (5.11)",
          "sockets of every network namespace can be found without entering it",
          "sockets of other network namespaces cannot be found",
          "nothing: connections older than the agent stay on TCP", SocketsOfTasks),
      row("sk_msg_link", "attaching an sk_msg program to a sockhash by a link (6.10)",
          "the sk_msg program can be replaced in one step",
          "the sk_msg program is attached without a link", "nothing: it is not relied on",
          LinkSkMsg),
      row("cgroup_link", "attaching a sock_ops program to a cgroup by a link (5.7)",
          "a pod is attached by a pinned link", "pods cannot be attached by links", kEngineNeeds,
          LinkSockOps),
      row("cgroup_setsockopt", "attaching a cgroup/setsockopt program by a link (5.7)",
          "SO_RCVLOWAT, SO_ZEROCOPY and TCP_ULP can be seen before they act",
          "SO_RCVLOWAT, SO_ZEROCOPY and TCP_ULP cannot be seen before they act",
          "keep the ports of programs that set them out of the policy", LinkSetsockopt),
      row("tp_btf_sock_recv_length", "a tp_btf/sock_recv_length program (6.3)",
          "flags of receiving calls can be seen", "flags of receiving calls cannot be seen",
          "keep the ports of programs that use MSG_WAITALL or MSG_OOB out of the policy",
          Tracepoint("sock_recv_length")),
      row("tp_btf_sys_enter", "a tp_btf/sys_enter program (5.5)", "splice() can be seen",
          "splice() cannot be seen", "keep the ports of programs that splice out of the policy",
          Tracepoint("sys_enter")),
      row("tp_btf_tcp_rcv_space_adjust", "a tp_btf/tcp_rcv_space_adjust program (5.5)",
          "deliveries by plain TCP can be seen", "deliveries by plain TCP cannot be seen",
          kTracepoints, Tracepoint("tcp_rcv_space_adjust")),
      row("fentry", "an fentry program on tcp_recvmsg() (5.5)", "kernel functions can be watched",
          "kernel functions cannot be watched", kTracepoints,
          Function(BPF_TRACE_FENTRY, "tcp_recvmsg")),
      row("fexit", "an fexit program on tcp_recvmsg() (5.5)",
          "answers of kernel functions can be watched",
          "answers of kernel functions cannot be watched", kTracepoints,
          Function(BPF_TRACE_FEXIT, "tcp_recvmsg")),
  };
}

}  // namespace shunt
