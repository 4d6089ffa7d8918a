// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/tiny_program.h"

#include <bpf/btf.h>
#include <linux/filter.h>

#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"

namespace shunt {
namespace {

constexpr size_t kVerifierLogSize = 16384;

struct bpf_insn Instruction(int code, int to, int from, __s16 offset, __s32 value) {
  struct bpf_insn one = {};
  one.code = static_cast<__u8>(code);
  one.dst_reg = static_cast<__u8>(to & 0xf);
  one.src_reg = static_cast<__u8>(from & 0xf);
  one.off = offset;
  one.imm = value;
  return one;
}

}  // namespace

KernelTypes::KernelTypes() : btf_(nullptr, btf__free) {}
KernelTypes::~KernelTypes() = default;

__u32 KernelTypes::Find(const std::string& name, __u32 kind) const {
  std::call_once(read_, [&] { btf_.reset(btf__load_vmlinux_btf()); });
  if (btf_ == nullptr) {
    return 0;
  }
  const __s32 id = btf__find_by_name_kind(btf_.get(), name.c_str(), kind);
  return id > 0 ? static_cast<__u32>(id) : 0;
}

std::string LastWordOf(const std::string& verifier_log) {
  std::string refusal;
  for (const absl::string_view line : absl::StrSplit(verifier_log, '\n', absl::SkipWhitespace())) {
    if (!absl::StartsWith(line, "processed ")) {
      refusal = std::string(absl::StripAsciiWhitespace(line));
    }
  }
  return refusal;
}

LoadResult LoadTiny(const TinyProgram& program) {
  std::vector<char> log(kVerifierLogSize);
  LIBBPF_OPTS(bpf_prog_load_opts, options);
  options.expected_attach_type = program.attach;
  options.attach_btf_id = program.target;
  options.log_buf = log.data();
  options.log_size = log.size();
  options.log_level = 1;
  LoadResult result;
  result.program.Reset(bpf_prog_load(program.type, "probe_tiny", "GPL", program.code.data(),
                                     program.code.size(), &options));
  if (!result.program.valid()) {
    result.error = errno;
    result.refusal = LastWordOf(log.data());
  }
  return result;
}

Code Move(int to, int from) { return {Instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)}; }
Code Set(int reg, __s32 value) {
  return {Instruction(BPF_ALU64 | BPF_MOV | BPF_K, reg, 0, 0, value)};
}
Code Load64(int to, int from, __s16 offset) {
  return {Instruction(BPF_LDX | BPF_MEM | BPF_DW, to, from, offset, 0)};
}
Code Load32(int to, int from, __s16 offset) {
  return {Instruction(BPF_LDX | BPF_MEM | BPF_W, to, from, offset, 0)};
}
Code StoreOnStack(__s16 offset, __s32 value) {
  return {Instruction(BPF_ST | BPF_MEM | BPF_DW, BPF_REG_10, 0, offset, value)};
}
Code StackAddress(int to, __s16 offset) {
  return {Instruction(BPF_ALU64 | BPF_MOV | BPF_X, to, BPF_REG_10, 0, 0),
          Instruction(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, offset)};
}
Code MapFd(int to, int fd) {
  return {Instruction(BPF_LD | BPF_DW | BPF_IMM, to, BPF_PSEUDO_MAP_FD, 0, fd),
          Instruction(0, 0, 0, 0, 0)};
}
Code Call(__s32 helper) { return {Instruction(BPF_JMP | BPF_CALL, 0, 0, 0, helper)}; }
Code CallKernel(__u32 function) {
  return {
      Instruction(BPF_JMP | BPF_CALL, 0, BPF_PSEUDO_KFUNC_CALL, 0, static_cast<__s32>(function))};
}
Code LeaveIfNull(int reg, __s32 answer) {
  return {Instruction(BPF_JMP | BPF_JNE | BPF_K, reg, 0, 2, 0),
          Instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, answer),
          Instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)};
}
Code Return(__s32 answer) {
  return {Instruction(BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, answer),
          Instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)};
}
Code Concat(std::initializer_list<Code> parts) {
  Code all;
  for (const Code& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

UniqueFd MakeSocketStorage() {
  const std::unique_ptr<struct ::btf, void (*)(struct ::btf*)> types(btf__new_empty(), btf__free);
  if (types == nullptr) {
    return UniqueFd();
  }
  const int id = btf__add_int(types.get(), "int", 4, BTF_INT_SIGNED);
  if (id < 0 || btf__load_into_kernel(types.get()) != 0) {
    return UniqueFd();
  }
  LIBBPF_OPTS(bpf_map_create_opts, options);
  options.map_flags = BPF_F_NO_PREALLOC;
  options.btf_fd = static_cast<__u32>(btf__fd(types.get()));
  options.btf_key_type_id = static_cast<__u32>(id);
  options.btf_value_type_id = static_cast<__u32>(id);
  return UniqueFd(
      bpf_map_create(BPF_MAP_TYPE_SK_STORAGE, "probe_tiny", sizeof(int), sizeof(int), 0, &options));
}

}  // namespace shunt
