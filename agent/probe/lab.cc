// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/lab.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/base/status.h"
#include "probe.skel.h"

namespace shunt {
namespace {

constexpr int kAttempts = 3;  // everything; without let_go; without iterators
constexpr size_t kVerifierLogSize = 65536;
constexpr timeval kSocketTimeout = {0, 200000};

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

Address LoopbackOf(Family family) {
  Address address;
  if (family == Family::kIpv4) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
    v4->sin_family = AF_INET;
    v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.size = sizeof(*v4);
    return address;
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  v6->sin6_family = AF_INET6;
  inet_pton(AF_INET6, family == Family::kIpv6 ? "::1" : "::ffff:127.0.0.1", &v6->sin6_addr);
  address.size = sizeof(*v6);
  return address;
}

absl::StatusOr<UniqueFd> TcpSocket(Family family) {
  UniqueFd fd(socket(family == Family::kIpv4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    return ErrnoStatus(errno, "making a TCP socket");
  }
  // Bound connect(), accept() and every blocking call of a trial.
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kSocketTimeout, sizeof(kSocketTimeout));
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kSocketTimeout, sizeof(kSocketTimeout));
  return fd;
}

// Accepts the connection of `client` and no other: without a scratch
// namespace anybody may dial the port.
absl::StatusOr<UniqueFd> AcceptFrom(int listener, int client) {
  Address expected;
  getsockname(client, expected.get(), &expected.size);
  for (int i = 0; i < 8; ++i) {
    Address peer;
    UniqueFd fd(accept4(listener, peer.get(), &peer.size, SOCK_CLOEXEC));
    if (!fd.valid()) {
      return ErrnoStatus(errno, "accepting on loopback");
    }
    if (peer.size == expected.size &&
        memcmp(&peer.storage, &expected.storage, expected.size) == 0) {
      setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kSocketTimeout, sizeof(kSocketTimeout));
      setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kSocketTimeout, sizeof(kSocketTimeout));
      return fd;
    }
  }
  return absl::UnavailableError("accepting on loopback: strangers keep connecting");
}

// A verifier log ends with what it refused, then its statistics.
std::string Refusal(const std::vector<char>& log) {
  std::string refusal;
  for (const absl::string_view line : absl::StrSplit(log.data(), '\n', absl::SkipWhitespace())) {
    if (!absl::StartsWith(line, "processed ")) {
      refusal = std::string(absl::StripAsciiWhitespace(line));
    }
  }
  return refusal;
}

}  // namespace

void Lab::Destroyer::operator()(struct ::probe* skeleton) const {
  const int program = bpf_program__fd(skeleton->progs.probe_msg);
  if (program >= 0) {
    bpf_prog_detach2(program, bpf_map__fd(skeleton->maps.members), BPF_SK_MSG_VERDICT);
  }
  probe__destroy(skeleton);
}

Lab::~Lab() = default;

absl::StatusOr<std::unique_ptr<Lab>> Lab::Create() {
  int error = 0;
  std::vector<char> log(kVerifierLogSize);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::fill(log.begin(), log.end(), '\0');
    LIBBPF_OPTS(bpf_object_open_opts, options);
    options.kernel_log_buf = log.data();
    options.kernel_log_size = log.size();
    std::unique_ptr<Lab> lab(new Lab);
    lab->skeleton_.reset(probe__open_opts(&options));
    if (lab->skeleton_ == nullptr) {
      return ErrnoStatus(errno, "opening the probe object");
    }
    struct ::probe* skeleton = lab->skeleton_.get();
    lab->has_let_go_ = attempt < 1;
    lab->has_list_ = attempt < 2;
    bpf_program__set_autoload(skeleton->progs.probe_let_go, lab->has_let_go_);
    bpf_program__set_autoload(skeleton->progs.probe_list, lab->has_list_);
    error = probe__load(skeleton);
    if (error != 0) {
      continue;
    }
    // Sockets copy the program at insertion, so it is there before the first.
    if (bpf_prog_attach(bpf_program__fd(skeleton->progs.probe_msg),
                        bpf_map__fd(skeleton->maps.members), BPF_SK_MSG_VERDICT, 0) != 0) {
      return ErrnoStatus(errno, "attaching the sk_msg program to a sockhash");
    }
    return lab;
  }
  const std::string refused = Refusal(log);
  return ErrnoStatus(error, refused.empty() ? "loading" : absl::StrCat("loading: ", refused));
}

int Lab::Enrol(int socket) {
  const uint64_t key = CookieOf(socket);
  const uint64_t value = static_cast<uint64_t>(socket);
  return bpf_map_update_elem(bpf_map__fd(skeleton_->maps.members), &key, &value, BPF_NOEXIST) == 0
             ? 0
             : errno;
}

int Lab::Expel(uint64_t key) {
  return bpf_map_delete_elem(bpf_map__fd(skeleton_->maps.members), &key) == 0 ? 0 : errno;
}

bool Lab::IsMember(uint64_t key) {
  uint64_t cookie = 0;
  return bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.members), &key, &cookie) == 0;
}

const struct ::bpf_program* Lab::list_program() const {
  return has_list_ ? skeleton_->progs.probe_list : nullptr;
}

const struct ::bpf_program* Lab::let_go_program() const {
  return has_let_go_ ? skeleton_->progs.probe_let_go : nullptr;
}

absl::StatusOr<std::vector<probe_member>> Lab::Walk(const struct ::bpf_program* program) {
  union bpf_iter_link_info info = {};
  info.map.map_fd = static_cast<__u32>(bpf_map__fd(skeleton_->maps.members));
  LIBBPF_OPTS(bpf_iter_attach_opts, options);
  options.link_info = &info;
  options.link_info_len = sizeof(info);
  std::unique_ptr<struct bpf_link, int (*)(struct bpf_link*)> link(
      bpf_program__attach_iter(program, &options), bpf_link__destroy);
  if (link == nullptr) {
    return ErrnoStatus(errno, "attaching the iterator to a sockhash");
  }
  UniqueFd run(bpf_iter_create(bpf_link__fd(link.get())));
  if (!run.valid()) {
    return ErrnoStatus(errno, "starting the iterator");
  }
  std::string bytes;
  std::array<char, 4096> chunk;
  ssize_t size;
  while ((size = read(run.get(), chunk.data(), chunk.size())) > 0) {
    bytes.append(chunk.data(), static_cast<size_t>(size));
  }
  if (size < 0) {
    return ErrnoStatus(errno, "reading from the iterator");
  }
  std::vector<probe_member> members(bytes.size() / sizeof(probe_member));
  memcpy(members.data(), bytes.data(), members.size() * sizeof(probe_member));
  return members;
}

int Lab::ReadSocket(int socket, probe_socket* state) {
  return bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.probe_sockets), &socket, state) == 0
             ? 0
             : errno;
}

int Lab::WriteSocket(int socket, const probe_socket& state) {
  return bpf_map_update_elem(bpf_map__fd(skeleton_->maps.probe_sockets), &socket, &state,
                             BPF_ANY) == 0
             ? 0
             : errno;
}

int Bound::Left(int most) const {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      end_ - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, most));
}

bool HasLoopback(Family family) {
  const UniqueFd fd(
      socket(family == Family::kIpv4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    return errno != EAFNOSUPPORT;
  }
  Address address = LoopbackOf(family);
  return bind(fd.get(), address.get(), address.size) == 0 || errno != EADDRNOTAVAIL;
}

absl::StatusOr<UniqueFd> Listen(Family family) {
  SHUNT_ASSIGN_OR_RETURN(UniqueFd fd, TcpSocket(family), "");
  Address address = LoopbackOf(family);
  if (bind(fd.get(), address.get(), address.size) != 0) {
    return ErrnoStatus(errno, "binding to loopback");
  }
  if (listen(fd.get(), 8) != 0) {
    return ErrnoStatus(errno, "listening on loopback");
  }
  return fd;
}

uint64_t CookieOf(int socket) {
  uint64_t cookie = 0;
  socklen_t size = sizeof(cookie);
  getsockopt(socket, SOL_SOCKET, SO_COOKIE, &cookie, &size);
  return cookie;
}

int Disconnect(int socket) {
  sockaddr unspecified = {};
  unspecified.sa_family = AF_UNSPEC;
  return connect(socket, &unspecified, sizeof(unspecified)) == 0 ? 0 : errno;
}

int ConnectTo(int socket, int listener) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  getsockname(listener, generic, &size);
  return connect(socket, generic, size) == 0 ? 0 : errno;
}

absl::StatusOr<Trial> Trial::Make(Lab* lab, Family family, Way way,
                                  std::chrono::milliseconds limit) {
  Trial trial;
  trial.bound_ = Bound(limit);
  SHUNT_ASSIGN_OR_RETURN(UniqueFd listener, Listen(family), "");
  SHUNT_ASSIGN_OR_RETURN(trial.tx_, TcpSocket(family), "");
  Address address;
  getsockname(listener.get(), address.get(), &address.size);
  if (connect(trial.tx(), address.get(), address.size) != 0) {
    return ErrnoStatus(errno, "connecting on loopback");
  }
  SHUNT_ASSIGN_OR_RETURN(trial.rx_, AcceptFrom(listener.get(), trial.tx()), "");
  trial.tx_key_ = CookieOf(trial.tx());
  trial.rx_key_ = CookieOf(trial.rx());
  if (way == Way::kPlain) {
    return trial;
  }
  trial.lab_ = lab;
  if (way != Way::kJoinLater) {
    SHUNT_RETURN_IF_ERROR(trial.Enrol(way == Way::kRedirect), "");
  }
  return trial;
}

absl::Status Trial::Enrol(bool redirect) {
  probe_socket state = {};
  state.redirect = redirect ? 1 : 0;
  state.peer_key = rx_key_;
  int error = lab_->WriteSocket(tx(), state);
  state.peer_key = tx_key_;
  if (error == 0) {
    error = lab_->WriteSocket(rx(), state);
  }
  if (error != 0) {
    return ErrnoStatus(error, "giving a socket its storage");
  }
  for (const int fd : {tx(), rx()}) {
    if (error = lab_->Enrol(fd); error != 0) {
      return ErrnoStatus(error, "entering an ESTABLISHED socket into a sockhash");
    }
  }
  return absl::OkStatus();
}

absl::Status Trial::Join() { return lab_ == nullptr ? absl::OkStatus() : Enrol(true); }

Trial::~Trial() {
  const linger reset = {1, 0};
  for (const int fd : {tx_.get(), rx_.get()}) {
    if (fd >= 0) {
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    }
  }
}

void Trial::Order(const std::function<void(probe_socket&)>& change) {
  if (lab_ == nullptr) {
    return;
  }
  for (const int fd : {tx_.get(), rx_.get()}) {
    probe_socket state;
    if (fd >= 0 && lab_->ReadSocket(fd, &state) == 0) {
      change(state);
      lab_->WriteSocket(fd, state);
    }
  }
}

void Trial::ByTcp() {
  Order([](probe_socket& state) { state.redirect = 0; });
}

void Trial::ByRedirect() {
  Order([](probe_socket& state) { state.redirect = 1; });
}

void Trial::MindShutdown() {
  Order([](probe_socket& state) { state.mind_shutdown = 1; });
}

void Trial::Dawdle() {
  Order([](probe_socket& state) { state.slow = 1; });
}

uint32_t Trial::Messages() const {
  probe_socket state = {};
  return lab_ != nullptr && lab_->ReadSocket(tx(), &state) == 0 ? state.messages : 0;
}

void Trial::AwaitMessage(uint32_t messages) const {
  while (lab_ != nullptr && Messages() < messages && bound_.Left() > 0) {
  }
}

void Trial::ExpelRx() {
  if (lab_ != nullptr) {
    lab_->Expel(rx_key_);
  }
}

void Trial::CloseTx() {
  redirected_at_close_ = Redirected();
  tx_.Reset();
}

uint32_t Trial::Redirected() const {
  probe_socket state;
  return lab_ != nullptr && tx_.valid() && lab_->ReadSocket(tx(), &state) == 0
             ? state.redirected
             : redirected_at_close_;
}

int Trial::Wait(int fd, short events, int most_ms) const {
  pollfd waited = {fd, events, 0};
  int ready;
  do {
    ready = poll(&waited, 1, bound_.Left(most_ms));
  } while (ready < 0 && errno == EINTR);
  return ready > 0 ? waited.revents : 0;
}

ssize_t Trial::Send(std::string_view data, int flags) const {
  size_t sent = 0;
  while (sent < data.size()) {
    const ssize_t n =
        send(tx(), data.data() + sent, data.size() - sent, flags | MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EAGAIN && bound_.Left() > 0 && Wait(tx(), POLLOUT) != 0) {
        continue;
      }
      return sent > 0 ? static_cast<ssize_t>(sent) : -errno;
    }
    sent += static_cast<size_t>(n);
  }
  return static_cast<ssize_t>(sent);
}

ssize_t Trial::Receive(char* buffer, size_t size, int flags, int most_ms) const {
  Wait(rx(), POLLIN, most_ms);
  const ssize_t n = recv(rx(), buffer, size, flags | MSG_DONTWAIT);
  return n < 0 ? -errno : n;
}

std::string Trial::ReceiveAll(size_t size, std::string* end) const {
  std::string all;
  std::array<char, 16384> chunk;
  std::string reason;
  while (all.size() < size) {
    const ssize_t n = Receive(chunk.data(), std::min(chunk.size(), size - all.size()));
    if (n > 0) {
      all.append(chunk.data(), static_cast<size_t>(n));
      continue;
    }
    if (n == -EAGAIN && bound_.Left() > 0) {
      continue;
    }
    reason = n == 0 ? "EOF" : strerrorname_np(static_cast<int>(-n));
    break;
  }
  if (end != nullptr) {
    *end = reason;
  }
  return all;
}

}  // namespace shunt
