// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/end.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/support/transcript.h"

namespace shunt::conformance {
namespace {

using test::BytesText;
using test::Clock;
using test::ErrnoName;

constexpr int kStepMs = 2000;

std::string FlagText(int flags) {
  constexpr struct {
    int bit;
    const char* name;
  } kNames[] = {{MSG_DONTWAIT, "DONTWAIT"}, {MSG_PEEK, "PEEK"},        {MSG_WAITALL, "WAITALL"},
                {MSG_OOB, "OOB"},           {MSG_MORE, "MORE"},        {MSG_TRUNC, "TRUNC"},
                {MSG_EOR, "EOR"},           {MSG_ZEROCOPY, "ZEROCOPY"}};
  std::string text;
  for (const auto& [bit, name] : kNames) {
    if (flags & bit) {
      text += std::string(" ") + name;
    }
  }
  return text;
}

char StateOf(pid_t pid) {
  char path[40];
  snprintf(path, sizeof(path), "/proc/%d/stat", pid);
  UniqueFd file(open(path, O_RDONLY | O_CLOEXEC));
  char text[256] = {};
  if (!file.valid() || read(file.get(), text, sizeof(text) - 1) <= 0) {
    return 0;
  }
  const char* end = strrchr(text, ')');
  return end != nullptr && end[1] == ' ' ? end[2] : 0;
}

uint8_t TcpStateOf(int fd) {
  struct tcp_info info = {};
  socklen_t size = sizeof(info);
  if (fd < 0 || getsockopt(fd, SOL_TCP, TCP_INFO, &info, &size) != 0) {
    return 0;
  }
  return info.tcpi_state;
}

}  // namespace

// ---- the transcript --------------------------------------------------------

void End::Tell(char kind, std::string_view text) {
  std::string message(1, kind);
  message += text;
  if (send(setup_.control, message.data(), message.size(), MSG_NOSIGNAL) < 0) {
    _exit(1);  // the suite is gone
  }
}

void End::Note(const std::string& line) { Tell('N', line.substr(0, 4000)); }

void End::NoteResult(const std::string& call, ssize_t result) {
  const int error = errno;
  Note(call + " -> " + (result < 0 ? ErrnoName(error) : std::to_string(result)));
}

void End::Enter(const char* call) {
  RunMemory::Side& side = setup_.memory->sides[static_cast<int>(setup_.role)];
  snprintf(side.call, sizeof(side.call), "%s", call);
  side.calling = true;
}

void End::Leave() { setup_.memory->sides[static_cast<int>(setup_.role)].calling = false; }

ssize_t End::Send(std::string_view data, int flags) {
  const ssize_t sent =
      Call("send", [&] { return send(fd(), data.data(), data.size(), flags | MSG_NOSIGNAL); });
  NoteResult("send " + BytesText(data) + FlagText(flags), sent);
  return sent;
}

std::string End::Recv(size_t size, int flags) {
  std::string data(size, '\0');
  const std::string call = "recv " + std::to_string(size) + FlagText(flags);
  const ssize_t got = Call(call.c_str(), [&] { return recv(fd(), data.data(), size, flags); });
  if (got <= 0) {
    NoteResult(call, got);
    return "";
  }
  data.resize(got);
  Note(call + " -> " + BytesText(data));
  return data;
}

void End::Shutdown(int how) {
  const ssize_t result = Call("shutdown", [&] { return shutdown(fd(), how); });
  NoteResult(std::string("shutdown ") + (how == SHUT_WR   ? "WR"
                                         : how == SHUT_RD ? "RD"
                                                          : "RDWR"),
             result);
}

void End::Close() {
  Call("close", [&] {
    socket_.Reset();
    return 0;
  });
  Note("close");
}

void End::SocketError() {
  const int error = GetOption("SO_ERROR", SOL_SOCKET, SO_ERROR, false);
  Note("SO_ERROR -> " + (error == 0 ? "0" : ErrnoName(error)));
}

void End::Poll(short wanted, int timeout_ms) {
  struct pollfd entry = {fd(), wanted, 0};
  const std::string call = "poll for " + test::PollText(wanted);
  const ssize_t ready = Call(call.c_str(), [&] { return poll(&entry, 1, timeout_ms); });
  if (ready < 0) {
    NoteResult(call, ready);
  } else {
    Note(call + " -> " + test::PollText(entry.revents));
  }
}

void End::PollNow() { Note("poll now -> " + test::PollText(test::PollNow(fd()))); }

void End::SetOption(const char* name, int level, int option, int value) {
  NoteResult(std::string("setsockopt ") + name + " " + std::to_string(value),
             setsockopt(fd(), level, option, &value, sizeof(value)));
}

int End::GetOption(const char* name, int level, int option, bool note) {
  int value = 0;
  socklen_t size = sizeof(value);
  const int result = getsockopt(fd(), level, option, &value, &size);
  if (result < 0) {
    NoteResult(std::string("getsockopt ") + name, result);
    return -1;
  }
  if (note) {
    Note(std::string("getsockopt ") + name + " -> " + std::to_string(value));
  }
  return value;
}

int End::Ioctl(const char* name, unsigned long request, bool note) {
  int value = 0;
  const int result = ioctl(fd(), request, &value);
  if (result < 0) {
    NoteResult(std::string("ioctl ") + name, result);
    return -1;
  }
  if (note) {
    Note(std::string("ioctl ") + name + " -> " + std::to_string(value));
  }
  return value;
}

bool End::ReadExactly(size_t size, bool note) {
  std::string data(size, '\0');
  size_t done = 0;
  std::string why;
  const std::string call = "read " + std::to_string(size);
  while (done < size && why.empty()) {
    struct pollfd entry = {fd(), POLLIN, 0};
    if (Call(call.c_str(), [&] { return poll(&entry, 1, kStepMs); }) == 0) {
      why = ", then nothing";
      break;
    }
    const ssize_t got = Call(
        call.c_str(), [&] { return recv(fd(), data.data() + done, size - done, MSG_DONTWAIT); });
    if (got > 0) {
      done += got;
    } else if (got == 0) {
      why = ", then EOF";
    } else if (errno != EAGAIN) {
      why = ", then " + ErrnoName(errno);
    }
  }
  data.resize(done);
  if (note || done < size) {
    Note(call + " in pieces -> " + BytesText(data) + why);
  }
  return done == size;
}

void End::ReadToEnd() {
  test::Hash hash;
  uint64_t total = 0;
  std::string head, why;
  std::vector<char> buffer(65536);
  while (why.empty()) {
    struct pollfd entry = {fd(), POLLIN, 0};
    if (Call("read to the end", [&] { return poll(&entry, 1, kStepMs); }) == 0) {
      why = "nothing";
      break;
    }
    const ssize_t got = Call(
        "read to the end", [&] { return recv(fd(), buffer.data(), buffer.size(), MSG_DONTWAIT); });
    if (got > 0) {
      total += got;
      hash.Add({buffer.data(), static_cast<size_t>(got)});
      if (head.size() <= 64) {
        head.append(buffer.data(), std::min<size_t>(got, 65));
      }
    } else if (got == 0) {
      why = "EOF";
    } else if (errno != EAGAIN) {
      why = ErrnoName(errno);
    }
  }
  Note("read to the end -> " +
       (total == head.size() ? BytesText(head)
                             : std::to_string(total) + " bytes with hash " + hash.Text()) +
       ", then " + why);
}

// ---- not noted -------------------------------------------------------------

bool End::SendAll(std::string_view data) {
  while (!data.empty()) {
    const ssize_t sent =
        Call("send all", [&] { return send(fd(), data.data(), data.size(), MSG_NOSIGNAL); });
    if (sent < 0) {
      NoteResult("send with " + std::to_string(data.size()) + " bytes to go", sent);
      return false;
    }
    data.remove_prefix(sent);
  }
  return true;
}

std::string End::Bytes(size_t size) {
  // Printable, so that short transcripts can be read.
  std::string data = test::Pattern(seed() * 2 + client()).At(sent_, size);
  for (char& byte : data) {
    byte = static_cast<char>('a' + static_cast<unsigned char>(byte) % 26);
  }
  sent_ += size;
  return data;
}

bool End::Await(short wanted) {
  struct pollfd entry = {fd(), wanted, 0};
  if (Call("await", [&] { return poll(&entry, 1, kStepMs); }) > 0) {
    return true;
  }
  Note("waited in vain for " + test::PollText(wanted));
  return false;
}

// ---- keeping pace ----------------------------------------------------------

void End::Meet() {
  char token = 'm';
  if (send(setup_.partner, &token, 1, MSG_NOSIGNAL) == 1) {
    (void)!recv(setup_.partner, &token, 1, 0);
  }
}

void End::AwaitPeerBlocked() {
  const RunMemory::Side& peer = setup_.memory->sides[1 - static_cast<int>(setup_.role)];
  int asleep = 0;
  for (int looks = 0; looks < 400 && asleep < 4; looks++) {
    Sleep(3);
    asleep = peer.calling && StateOf(peer.pid) == 'S' ? asleep + 1 : 0;
  }
}

void End::AwaitDelivered() {
  for (int looks = 0; looks < 150; looks++) {
    int unacknowledged = 0;
    if (ioctl(fd(), SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0) {
      return;
    }
    Sleep(2);
  }
}

void End::Sleep(int ms) { std::this_thread::sleep_for(milliseconds(ms)); }

// ---- connecting ------------------------------------------------------------

UniqueFd End::Listen(uint16_t port, int backlog) {
  const bool tproxy = setup_.test->route == Route::kTproxy;
  const test::Endpoint endpoint = tproxy ? test::Endpoint("0.0.0.0", port) : ListenAddress(port);
  UniqueFd listener(::socket(endpoint.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (tproxy) {
    setsockopt(listener.get(), SOL_IP, IP_TRANSPARENT, &one, sizeof(one));
  }
  if (setup_.test->listener) {
    setup_.test->listener(listener.get());
  }
  if (bind(listener.get(), endpoint.get(), endpoint.size()) != 0 ||
      listen(listener.get(), backlog) != 0) {
    NoteResult("listen", -1);
  }
  return listener;
}

UniqueFd End::Dial(uint16_t port) {
  const test::Endpoint endpoint =
      port == kTproxyPort ? test::Endpoint(kTproxyAddress, port) : DialAddress(port);
  UniqueFd made(::socket(endpoint.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (setup_.test->dialler) {
    setup_.test->dialler(made.get());
  }
  if (Call("connect", [&] { return connect(made.get(), endpoint.get(), endpoint.size()); }) != 0) {
    NoteResult("connect", -1);
  }
  return made;
}

UniqueFd End::Accept(int listener) {
  UniqueFd made(static_cast<int>(
      Call("accept", [&] { return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC); })));
  if (!made.valid()) {
    NoteResult("accept", -1);
  }
  return made;
}

void End::ConnectBoth(uint16_t dial_port) {
  // Else small messages wait for delayed acknowledgements, and two runs on TCP
  // are seldom the same.
  const int one = 1;
  if (client()) {
    Meet();
    socket_ = Dial(dial_port);
    Meet();
    setsockopt(fd(), SOL_TCP, TCP_NODELAY, &one, sizeof(one));
    return;
  }
  const UniqueFd listener = Listen();
  Meet();
  socket_ = Accept(listener.get());
  Meet();
  setsockopt(fd(), SOL_TCP, TCP_NODELAY, &one, sizeof(one));
}

void End::WarmUp() {
  for (int round = 0; round < 3; round++) {
    char buffer[64];
    memset(buffer, 'w', sizeof(buffer));
    const auto receive = [&] {
      for (size_t done = 0; done < sizeof(buffer);) {
        const ssize_t got = Call("warming up: recv", [&] {
          return recv(fd(), buffer + done, sizeof(buffer) - done, 0);
        });
        if (got <= 0) {
          NoteResult("warming up: recv", got);
          return;
        }
        done += got;
      }
    };
    if (client()) {
      SendAll({buffer, sizeof(buffer)});
      receive();
    } else {
      receive();
      SendAll({buffer, sizeof(buffer)});
    }
  }
  Meet();
}

// ---- the life of an end ----------------------------------------------------

void End::AwaitGo() {
  char go;
  ssize_t got;
  do {
    got = recv(setup_.control, &go, 1, 0);
  } while (got < 0 && errno == EINTR);
  if (got != 1) {
    _exit(1);
  }
}

void End::Live() {
  setup_.memory->sides[static_cast<int>(setup_.role)].pid = getpid();
  const Case& test = *setup_.test;
  if (test.route != Route::kOwn) {
    ConnectBoth(test.route == Route::kRedirect ? kRedirectedPort
                : test.route == Route::kTproxy ? kTproxyPort
                                               : kServerPort);
    Tell('C', socket_.valid() ? std::to_string(test::Endpoint::LocalOf(fd()).port()) : "0");
    AwaitGo();
    if (test.start == Start::kWarm) {
      WarmUp();
    }
  }
  (client() ? test.client : test.server)(*this);
  // Only now, when nothing more is noted, is the socket looked at.
  Tell('D', std::to_string(TcpStateOf(fd())));
  AwaitGo();
}

// ---- the watch -------------------------------------------------------------

int64_t Watch::Elapsed() const {
  return std::chrono::duration_cast<milliseconds>(Clock::now() - start_).count();
}

std::string Watch::Class(int expected, int tolerance) const {
  const int64_t elapsed = Elapsed();
  if (elapsed + 20 < expected) {
    return "early";
  }
  return elapsed > expected + tolerance ? "late" : expected == 0 ? "at once" : "on time";
}

std::string ErrnoText(int error) { return error == 0 ? "0" : ErrnoName(error); }

}  // namespace shunt::conformance
