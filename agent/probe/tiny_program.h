// SPDX-License-Identifier: Apache-2.0
//
// BPF programs of a few instructions, written by hand: each asks the running
// kernel for one thing only, which an object compiled from C cannot.
#ifndef SHUNT_AGENT_PROBE_TINY_PROGRAM_H_
#define SHUNT_AGENT_PROBE_TINY_PROGRAM_H_

#include <bpf/bpf.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent/base/unique_fd.h"

struct btf;  // libbpf

namespace shunt {

// What the running kernel says of its own types. Thread-safe; reads them when
// first asked.
class KernelTypes {
 public:
  KernelTypes();
  ~KernelTypes();

  // 0 if there is none. `kind` is a BTF_KIND_.
  __u32 Find(const std::string& name, __u32 kind) const;

 private:
  mutable std::once_flag read_;
  mutable std::unique_ptr<struct ::btf, void (*)(struct ::btf*)> btf_;
};

struct TinyProgram {
  enum bpf_prog_type type = BPF_PROG_TYPE_UNSPEC;
  enum bpf_attach_type attach = static_cast<enum bpf_attach_type>(0);
  __u32 target = 0;  // the id of the type it is made for: tracing programs
  std::vector<struct bpf_insn> code;
};

struct LoadResult {
  UniqueFd program;
  int error = 0;
  std::string refusal;  // the verifier's, one line; empty if it did not speak
};

// "probe_tiny" in lists of programs.
LoadResult LoadTiny(const TinyProgram& program);

// What the verifier ends with before its statistics.
std::string LastWordOf(const std::string& verifier_log);

// Instructions. R1 holds the context at entry, R0 the answer at exit.
using Code = std::vector<struct bpf_insn>;
Code Move(int to, int from);
Code Set(int reg, __s32 value);
Code Load64(int to, int from, __s16 offset);
Code Load32(int to, int from, __s16 offset);
Code StoreOnStack(__s16 offset, __s32 value);  // offset: -8, -16, ...
Code StackAddress(int to, __s16 offset);
Code MapFd(int to, int fd);
Code Call(__s32 helper);
Code CallKernel(__u32 function);  // a kfunc, by its type's id
// Answers `answer` at once if `reg` is 0.
Code LeaveIfNull(int reg, __s32 answer);
Code Return(__s32 answer);
Code Concat(std::initializer_list<Code> parts);

// A map of sockets' storage; it needs a type of its own. Invalid: errno says.
UniqueFd MakeSocketStorage();

}  // namespace shunt

#endif  // SHUNT_AGENT_PROBE_TINY_PROGRAM_H_
