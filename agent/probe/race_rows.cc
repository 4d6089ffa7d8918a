// SPDX-License-Identifier: Apache-2.0
//
// Rows of docs/hazards.md that need a second thread: calls that wait, and
// races. A race that was not seen is unknown, never ok.
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <thread>

#include "absl/strings/str_cat.h"
#include "agent/probe/compare.h"
#include "agent/probe/lab.h"
#include "agent/probe/row.h"

namespace shunt {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

void SetTimeouts(int socket, milliseconds limit) {
  const timeval value = {0, static_cast<suseconds_t>(limit.count() * 1000)};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value));
}

// ---- calls that wait ---------------------------------------------------------

// False: the thread was not seen to sleep in a system call.
bool AwaitSleep(pid_t thread) {
  const std::string path = absl::StrCat("/proc/self/task/", thread, "/stat");
  const Bound bound(milliseconds(100));
  for (int asleep = 0; bound.Left() > 0;) {
    std::this_thread::sleep_for(milliseconds(2));
    const std::vector<std::string> words = WordsOf(path.c_str());
    const bool sleeps = std::find(words.begin(), words.end(), "S") != words.end();
    asleep = sleeps ? asleep + 1 : 0;
    if (asleep == 3) {
      return true;
    }
  }
  return false;
}

pid_t OwnThread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

// recv() in this thread, `meanwhile` in another once this one waits. kTooBusy
// if that came so late that what recv() did says nothing.
template <typename Meanwhile>
std::string BlockedReceive(int socket, Meanwhile meanwhile) {
  constexpr milliseconds kTimeout{300};
  constexpr milliseconds kTold{100};  // enough for a recv() that was woken to return
  SetTimeouts(socket, kTimeout);
  const pid_t reader = OwnThread();
  bool waits = false;
  steady_clock::time_point acted;
  std::thread other([&] {
    waits = AwaitSleep(reader);
    meanwhile();
    acted = steady_clock::now();
  });
  std::array<char, 16> buffer;
  const auto begin = steady_clock::now();
  const ssize_t n = recv(socket, buffer.data(), buffer.size(), 0);
  const int error = errno;
  const auto end = steady_clock::now();
  other.join();
  if (!waits || acted > begin + kTimeout - kTold) {
    return kTooBusy;
  }
  if (n < 0 && error == EAGAIN) {
    return end - begin >= kTimeout - milliseconds(5) ? "recv() waits on"
                                                     : "recv() returns EAGAIN at once";
  }
  return absl::StrCat("recv(): ", n == 0 ? "EOF" : Outcome(n < 0 ? -error : n));
}

std::string ResetWhileReceiving(Trial& trial) {
  return BlockedReceive(trial.rx(), [&] {
    const linger reset = {1, 0};
    setsockopt(trial.tx(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    trial.CloseTx();
  });
}

std::string ShutdownWhileReceiving(Trial& trial) {
  return BlockedReceive(trial.rx(), [&] { shutdown(trial.rx(), SHUT_RD); });
}

std::string RoomWhileReceiving(Trial& trial) {
  trial.Allow(milliseconds(1000));
  const int buffer = 32 * 1024;
  setsockopt(trial.tx(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
  setsockopt(trial.rx(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  const std::string chunk = Pattern(16384);
  size_t sent = 0;
  for (ssize_t n; (n = send(trial.tx(), chunk.data(), chunk.size(), MSG_DONTWAIT)) > 0 ||
                  trial.Wait(trial.tx(), POLLOUT, 5) != 0;) {
    sent += n > 0 ? static_cast<size_t>(n) : 0;
  }
  std::atomic<pid_t> sender_thread = 0;
  std::thread sender([&] {
    sender_thread = OwnThread();
    send(trial.tx(), chunk.data(), chunk.size(), MSG_NOSIGNAL);
  });
  bool waits = false;
  const std::string outcome = BlockedReceive(trial.tx(), [&] {
    waits = AwaitSleep(sender_thread);
    trial.ReceiveAll(sent + chunk.size());
  });
  sender.join();
  return waits ? outcome : kTooBusy;
}

std::string JoinWhileReceiving(Trial& trial) {
  trial.Allow(milliseconds(1000));
  return BlockedReceive(trial.rx(), [&] {
    if (trial.Join().ok()) {
      trial.Send("0123456789");
    }
  });
}

// ---- races ---------------------------------------------------------------------

// Plays one race; true if what TCP never does was seen.
using Race = bool (*)(Trial& trial);

struct Races {
  int seen = 0;
  int played = 0;
};

absl::StatusOr<Races> Play(Lab* lab, Way way, Race race, milliseconds limit) {
  const Bound bound(limit);
  Races races;
  while (bound.Left() > 0) {
    absl::StatusOr<Trial> trial = Trial::Make(lab, Family::kIpv4, way);
    if (!trial.ok()) {
      return trial.status();
    }
    races.seen += race(*trial) ? 1 : 0;
    ++races.played;
  }
  return races;
}

Probe Racing(Race race) {
  return [=](const ProbeContext& context) -> Finding {
    constexpr milliseconds kPlain{80};
    constexpr milliseconds kRedirected{200};
    const absl::StatusOr<Races> plain = Play(nullptr, Way::kPlain, race, kPlain);
    const absl::StatusOr<Races> redirected = Play(context.lab, Way::kRedirect, race, kRedirected);
    if (!plain.ok() || !redirected.ok()) {
      return Failed(plain.ok() ? redirected.status() : plain.status());
    }
    const std::string happened =
        absl::StrCat("seen in ", redirected->seen, " of ", redirected->played,
                     " races; plain TCP: ", plain->seen, " of ", plain->played);
    if (plain->seen > 0) {
      return {Found::kAsWanted, happened};
    }
    return {redirected->seen > 0 ? Found::kOtherwise : Found::kUnknown, happened};
  };
}

// Both at the same moment, as nearly as two CPUs allow.
template <typename One, typename Other>
void AtOnce(One one, Other other) {
  std::atomic<int> ready = 0;
  const auto meet = [&] {
    ++ready;
    while (ready < 2) {
      std::this_thread::yield();
    }
  };
  std::thread thread([&] {
    meet();
    one();
  });
  meet();
  other();
  thread.join();
}

// Memory that was never touched: recv() into it takes a while, and holds the
// socket's lock all the time.
class FreshMemory {
 public:
  explicit FreshMemory(size_t size)
      : size_(size),
        data_(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~FreshMemory() {
    if (data_ != MAP_FAILED) {
      munmap(data_, size_);
    }
  }
  FreshMemory(const FreshMemory&) = delete;
  FreshMemory& operator=(const FreshMemory&) = delete;

  // recv() reports EFAULT if there is none.
  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

 private:
  const size_t size_;
  void* const data_;
};

// The message is decided upon and must wait for the reader's lock; the FIN gets
// ahead of it.
bool MessageAfterFin(Trial& trial) {
  trial.MindShutdown();
  const FreshMemory memory(512 * 1024);
  trial.Send(Pattern(memory.size()));
  const uint32_t before = trial.Messages();
  std::atomic<bool> go = false;
  std::thread shutter([&] {
    trial.AwaitMessage(before + 1);
    shutdown(trial.tx(), SHUT_WR);
  });
  ssize_t sent = 0;
  std::thread sender([&] {
    while (!go) {
      std::this_thread::yield();
    }
    sent = trial.Send("0123456789");
  });
  go = true;
  ssize_t n;
  do {
    n = trial.Receive(memory.data(), memory.size(), 0, 100);
  } while (n > 0);
  const bool ended = n == 0;
  sender.join();
  shutter.join();
  // What comes now comes after the end that was read.
  return ended && sent > 0 && trial.Receive(memory.data(), memory.size(), 0, 0) > 0;
}

// On plain TCP there is no message on its way: it is there, or not sent yet.
bool FirstSendFails(Trial& trial) {
  trial.Dawdle();
  ssize_t sent = 0;
  AtOnce([&] { sent = trial.Send("0123456789"); },
         [&] {
           trial.AwaitMessage(1);
           trial.CloseRx();
         });
  return sent == -EPIPE;
}

// The receiver disconnects and connects elsewhere while a message is on its way.
bool ReconnectedReads(Trial& trial) {
  const absl::StatusOr<UniqueFd> listener = Listen(Family::kIpv4);
  if (!listener.ok()) {
    return false;
  }
  trial.Dawdle();
  AtOnce([&] { trial.Send("0123456789"); },
         [&] {
           trial.AwaitMessage(1);
           Disconnect(trial.rx());
           ConnectTo(trial.rx(), listener->get());
         });
  std::array<char, 64> buffer;
  return trial.Receive(buffer.data(), buffer.size(), 0, 0) > 0;
}

bool WritesInterleave(Trial& trial) {
  trial.Dawdle();
  constexpr size_t kSize = 640 * 1024;
  const int buffer = 4 << 20;
  setsockopt(trial.tx(), SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof(buffer));
  const FreshMemory memory(2 * kSize);
  size_t got = 0;
  std::thread reader([&] {
    ssize_t n;
    while (got < memory.size() &&
           (n = trial.Receive(memory.data() + got, memory.size() - got)) > 0) {
      got += static_cast<size_t>(n);
    }
  });
  const auto write = [&](char letter) {
    const std::string data(kSize, letter);
    send(trial.tx(), data.data(), data.size(), MSG_NOSIGNAL);
  };
  AtOnce([&] { write('a'); }, [&] { write('b'); });
  reader.join();
  int turns = 0;
  for (size_t i = 1; i < got; ++i) {
    turns += memory.data()[i] != memory.data()[i - 1] ? 1 : 0;
  }
  return turns > 1;  // not all of one before all of the other
}

}  // namespace

std::vector<Row> RaceRows() {
  return {
      {"sends_during_shutdown", "hazard 14", ProbeScope::kAll, kProbeDegraded,
       "shutdown(SHUT_WR) in one thread while another sends",
       "a message is before the end of the stream, or refused",
       "a message can come after the end of the stream",
       "nothing: the engine looks for a shutdown before each message; what remains is a race "
       "between threads of one program",
       Racing(MessageAfterFin)},
      {"send_as_peer_closes", "hazard 15", ProbeScope::kAll, kProbeDegraded,
       "sending 10 bytes while the peer closes", "the first send after a close succeeds, as on TCP",
       "the send that meets a close can fail with EPIPE already",
       "nothing: programs must handle EPIPE at any send", Racing(FirstSendFails)},
      {"reconnects_during_send", "hazard 16, fix 4", ProbeScope::kAll, kProbeDegraded,
       "connect(AF_UNSPEC) and connect() elsewhere while a message is on its way",
       "a new connection reads nothing of the old one",
       "the missing unhash: a message on its way can be read in the stream of a new connection",
       "keep the ports of programs that reconnect sockets out of the policy, or use the kernel "
       "module",
       Racing(ReconnectedReads)},
      {"blocked_recv_sees_reset", "hazard 17", ProbeScope::kAll, kProbeDegraded,
       "recv() waits while the peer resets the connection", "recv() reports the reset",
       "a recv() that waits can return EAGAIN when the peer resets the connection", kKeepOff,
       Member(ResetWhileReceiving)},
      {"blocked_recv_sees_shutdown", "hazard 17", ProbeScope::kAll, kProbeDegraded,
       "recv() waits while another thread does shutdown(SHUT_RD)", "recv() reports the end",
       "a recv() that waits can return EAGAIN when another thread shuts the socket down", kKeepOff,
       Member(ShutdownWhileReceiving)},
      {"blocked_recv_sees_no_room", "hazard 17", ProbeScope::kAll, kProbeDegraded,
       "recv() waits while another thread's send() on the same socket gets room", "recv() waits on",
       "a recv() that waits can return EAGAIN when another thread's send() gets room", kKeepOff,
       Member(RoomWhileReceiving)},
      {"blocked_recv_sees_redirected", "", ProbeScope::kAll, kProbeDegraded,
       "recv() waits in plain TCP while its socket is enrolled and bytes are redirected to it",
       "a reader that waits already sees redirected bytes",
       "a reader that waits already does not see redirected bytes",
       "nothing: the engine enters sockets at the end of their handshake, before anybody reads",
       JoiningLater(JoinWhileReceiving)},
      {"concurrent_writes_stay_whole", "", ProbeScope::kAll, kProbeDegraded,
       "two threads write 640 KiB each to one socket", "each write() stays whole, as on TCP",
       "bytes of two threads that write to one socket can mix inside one write",
       "nothing, unless threads of a program share a socket without a lock: then keep its port "
       "out of the policy",
       Racing(WritesInterleave)},
  };
}

}  // namespace shunt
