// SPDX-License-Identifier: Apache-2.0
//
// What a socket tells of itself, and options set on a live connection.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"

namespace shunt::conformance {
namespace {

// TCP option numbers.
constexpr uint32_t kMaxSegment = 2, kWindowScale = 3;

struct tcp_info InfoOf(int fd) {
  struct tcp_info info = {};
  socklen_t size = sizeof(info);
  getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size);
  return info;
}

Case TcpInfo() {
  return {
      "options.tcp_info", "TCP_INFO counts the bytes of both directions",
      [](End& end) {
        const struct tcp_info before = InfoOf(end.fd());
        end.SendAll(end.Bytes(1000));
        end.ReadExactly(2000);
        end.AwaitDelivered();
        const struct tcp_info after = InfoOf(end.fd());
        end.Note("state " + std::to_string(after.tcpi_state) + ", acknowledged " +
                 std::to_string(after.tcpi_bytes_acked - before.tcpi_bytes_acked) + ", received " +
                 std::to_string(after.tcpi_bytes_received - before.tcpi_bytes_received) +
                 ", segments " + (after.tcpi_segs_out > before.tcpi_segs_out ? "more" : "none"));
        end.Meet();
      },
      [](End& end) {
        end.ReadExactly(1000);
        end.SendAll(end.Bytes(2000));
        end.Meet();
      }};
}

Case TcpInfoTimes() {
  return {"options.tcp_info_last_data", "TCP_INFO: time since data was sent and received",
          [](End& end) {
            End::Sleep(400);
            end.SendAll(end.Bytes(10));
            end.ReadExactly(10);
            const struct tcp_info info = InfoOf(end.fd());
            end.Note(std::string("sent ") +
                     (info.tcpi_last_data_sent < 300 ? "just now" : "long ago") + ", received " +
                     (info.tcpi_last_data_recv < 300 ? "just now" : "long ago"));
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(10);
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          Start::kWarm};
}

Case Outq() {
  return {"options.outq",
          "SIOCOUTQ and SIOCOUTQNSD: 0 when all has arrived, more when nobody reads",
          [](End& end) {
            end.Ioctl("SIOCOUTQ", SIOCOUTQ);
            end.SendAll(end.Bytes(100));
            end.AwaitDelivered();
            end.Ioctl("SIOCOUTQ", SIOCOUTQ);
            end.Ioctl("SIOCOUTQNSD", SIOCOUTQNSD);
            const std::string data(65536, 'x');
            for (int i = 0; i < 1000; i++) {
              if (send(end.fd(), data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
                break;
              }
            }
            End::Sleep(300);
            end.Note(end.Ioctl("TIOCOUTQ", TIOCOUTQ, false) > 0 ? "waits in the queue" : "0");
            end.Meet();
          },
          [](End& end) { end.Meet(); }};
}

Case Names() {
  return {"options.names",
          "getsockname(), getpeername(), SO_DOMAIN, SO_TYPE, SO_PROTOCOL, …",
          [](End& end) {
            end.GetOption("SO_DOMAIN", SOL_SOCKET, SO_DOMAIN);
            end.GetOption("SO_TYPE", SOL_SOCKET, SO_TYPE);
            end.GetOption("SO_PROTOCOL", SOL_SOCKET, SO_PROTOCOL);
            end.GetOption("SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN);
            end.GetOption("SO_ERROR", SOL_SOCKET, SO_ERROR);
            struct sockaddr_storage name = {};
            socklen_t size = sizeof(name);
            end.NoteResult("getpeername",
                           getpeername(end.fd(), reinterpret_cast<struct sockaddr*>(&name), &size));
            end.Note("family " + std::to_string(name.ss_family) + " size " + std::to_string(size) +
                     " port " +
                     std::to_string(ntohs(reinterpret_cast<struct sockaddr_in*>(&name)->sin_port)));
            end.Meet();
          },
          [](End& end) {
            struct sockaddr_storage name = {};
            socklen_t size = sizeof(name);
            end.NoteResult("getsockname",
                           getsockname(end.fd(), reinterpret_cast<struct sockaddr*>(&name), &size));
            end.Note("family " + std::to_string(name.ss_family) + " size " + std::to_string(size) +
                     " port " +
                     std::to_string(ntohs(reinterpret_cast<struct sockaddr_in*>(&name)->sin_port)));
            char congestion[16] = {};
            size = sizeof(congestion);
            getsockopt(end.fd(), IPPROTO_TCP, TCP_CONGESTION, congestion, &size);
            end.Note(std::string("congestion control ") + congestion);
            char ulp[16] = {};
            size = sizeof(ulp);
            end.NoteResult("TCP_ULP", getsockopt(end.fd(), IPPROTO_TCP, TCP_ULP, ulp, &size));
            end.Note("of " + std::to_string(size));
            end.Meet();
          },
          Start::kWarm,
          {IpMode::kV4, IpMode::kV6, IpMode::kMapped}};
}

Case Cookie() {
  return {"options.cookie", "SO_COOKIE and SO_INCOMING_CPU: there, and steady",
          [](End& end) {
            uint64_t first = 0, again = 0;
            socklen_t size = sizeof(first);
            end.NoteResult("SO_COOKIE", getsockopt(end.fd(), SOL_SOCKET, SO_COOKIE, &first, &size));
            end.SendAll(end.Bytes(10));
            end.Meet();
            getsockopt(end.fd(), SOL_SOCKET, SO_COOKIE, &again, &size);
            end.Note(first != 0 && first == again ? "the same" : "another");
          },
          [](End& end) {
            end.ReadExactly(10);
            const int cpu = end.GetOption("SO_INCOMING_CPU", SOL_SOCKET, SO_INCOMING_CPU, false);
            end.Note(cpu >= 0 ? "on a CPU" : "on none");
            end.Meet();
          },
          Start::kWarm};
}

Case Timestamps() {
  return {"options.so_timestamp", "SO_TIMESTAMP: recvmsg() brings the time of arrival",
          [](End& end) {
            end.Meet();
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            end.SetOption("SO_TIMESTAMP", SOL_SOCKET, SO_TIMESTAMP, 1);
            End::Sleep(100);  // the kernel begins to take times a little later
            end.Meet();
            end.Await(POLLIN);
            char data[100];
            struct iovec piece = {data, sizeof(data)};
            char space[200];
            struct msghdr message = {};
            message.msg_iov = &piece;
            message.msg_iovlen = 1;
            message.msg_control = space;
            message.msg_controllen = sizeof(space);
            end.NoteResult("recvmsg", recvmsg(end.fd(), &message, MSG_DONTWAIT));
            const struct cmsghdr* header = CMSG_FIRSTHDR(&message);
            end.Note(header != nullptr && header->cmsg_type == SO_TIMESTAMP ? "with a time"
                                                                            : "without a time");
            end.Meet();
          }};
}

Case SendTimestamps() {
  return {"options.so_timestamping_tx", "SO_TIMESTAMPING: when sent data was acknowledged",
          [](End& end) {
            end.SetOption(
                "SO_TIMESTAMPING", SOL_SOCKET, SO_TIMESTAMPING,
                SOF_TIMESTAMPING_TX_ACK | SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_OPT_TSONLY);
            end.Send(10);
            end.Meet();
            struct pollfd entry = {end.fd(), 0, 0};
            end.Call("poll", [&] { return poll(&entry, 1, 500); });
            end.Note((entry.revents & POLLERR) != 0 ? "a time stamp" : "no time stamp");
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(10);
            end.SendAll("ack");
            end.Meet();
            end.Meet();
          }};
}

Case Simple() {
  return {"options.set_live", "options set on a live connection keep, and data flows on",
          [](End& end) {
            const struct {
              const char* name;
              int level, option, value;
            } kOptions[] = {{"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 0},
                            {"TCP_QUICKACK", IPPROTO_TCP, TCP_QUICKACK, 1},
                            {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 100},
                            {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 10},
                            {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
                            {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 30000},
                            {"TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384},
                            {"TCP_WINDOW_CLAMP", IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000},
                            {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 3},
                            {"SO_MARK", SOL_SOCKET, SO_MARK, 77},
                            {"SO_BUSY_POLL", SOL_SOCKET, SO_BUSY_POLL, 10},
                            {"SO_MAX_PACING_RATE", SOL_SOCKET, SO_MAX_PACING_RATE, 100000000}};
            for (const auto& option : kOptions) {
              end.SetOption(option.name, option.level, option.option, option.value);
              end.GetOption(option.name, option.level, option.option);
              end.SendAll(end.Bytes(10));
              end.ReadExactly(10, false);
            }
            end.NoteResult("TCP_CONGESTION",
                           setsockopt(end.fd(), IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            for (int i = 0; i < 12; i++) {
              end.ReadExactly(10);
              end.SendAll(end.Bytes(10));
            }
            end.ReadExactly(10);
            end.Meet();
          },
          Start::kWarm};
}

Case Ulp() {
  return {"options.ulp_unknown", "TCP_ULP of a name that is not there, then data",
          [](End& end) {
            end.NoteResult("TCP_ULP", setsockopt(end.fd(), IPPROTO_TCP, TCP_ULP, "nonesuch", 8));
            end.SendAll(end.Bytes(10));
            end.Meet();
          },
          [](End& end) {
            end.ReadExactly(10);
            end.Meet();
          },
          Start::kWarm};
}

std::string NoTls() {
  std::ifstream file("/proc/sys/net/ipv4/tcp_available_ulp");
  std::string name;
  while (file >> name) {
    if (name == "tls") {
      return "";
    }
  }
  return "this kernel has no kTLS (CONFIG_TLS): modprobe tls, or another kernel";
}

Case KernelTls() {
  const Program sets = [](End& end) {
    end.NoteResult("TCP_ULP tls", setsockopt(end.fd(), IPPROTO_TCP, TCP_ULP, "tls", 3));
    end.Meet();
    end.SendAll(end.Bytes(100));
    end.ReadExactly(100);
    end.Meet();
  };
  return {"options.ktls_ulp",
          "TCP_ULP tls on a live connection, then data",
          sets,
          sets,
          Start::kBoth,
          {IpMode::kV4, IpMode::kV6},
          Route::kDirect,
          {},
          {},
          milliseconds(5000),
          4,
          3,
          true,
          NoTls};
}

Case Meminfo() {
  return {"options.meminfo", "SO_MEMINFO: unread bytes are on the receiver's account",
          [](End& end) {
            end.SendAll(end.Bytes(30000));
            end.AwaitDelivered();
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            end.Meet();
            end.Await(POLLIN);
            uint32_t memory[9] = {};
            socklen_t size = sizeof(memory);
            getsockopt(end.fd(), SOL_SOCKET, SO_MEMINFO, memory, &size);
            end.Note(memory[0] >= 30000 ? "charged" : "not charged");
            end.ReadExactly(30000);
            getsockopt(end.fd(), SOL_SOCKET, SO_MEMINFO, memory, &size);
            end.Note(memory[0] < 30000 ? "given back" : "not given back");
            end.Meet();
          }};
}

Case Filter() {
  return {"options.socket_filter", "SO_ATTACH_FILTER that takes everything, and its removal",
          [](End& end) {
            end.Meet();
            end.SendAll(end.Bytes(100));
            end.Meet();
            end.Meet();
            end.SendAll(end.Bytes(100));
            end.Meet();
          },
          [](End& end) {
            struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0xffffffff)};
            const struct sock_fprog program = {1, code};
            end.NoteResult("SO_ATTACH_FILTER", setsockopt(end.fd(), SOL_SOCKET, SO_ATTACH_FILTER,
                                                          &program, sizeof(program)));
            end.Meet();
            end.ReadExactly(100);
            end.Meet();
            end.SetOption("SO_DETACH_FILTER", SOL_SOCKET, SO_DETACH_FILTER, 0);
            end.Meet();
            end.ReadExactly(100);
            end.Meet();
          },
          Start::kWarm};
}

Case FilterDrops() {
  return {"options.socket_filter_drops", "SO_ATTACH_FILTER that drops everything: nothing arrives",
          [](End& end) {
            end.Meet();
            end.Send(100);
            end.Meet();
            end.Meet();
          },
          [](End& end) {
            struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
            const struct sock_fprog program = {1, code};
            end.NoteResult("SO_ATTACH_FILTER", setsockopt(end.fd(), SOL_SOCKET, SO_ATTACH_FILTER,
                                                          &program, sizeof(program)));
            end.Meet();
            end.Poll(POLLIN, 150);
            end.Meet();
            end.SetOption("SO_DETACH_FILTER", SOL_SOCKET, SO_DETACH_FILTER, 0);
            end.Poll(POLLIN, 2000);  // TCP sends it again
            end.Recv(200, MSG_DONTWAIT);
            end.Meet();
          },
          Start::kWarm};
}

// What CRIU does: reads the queues and sequence numbers of a live socket, throws
// it away without a word on the wire, and makes it again.
Case Checkpoint() {
  return {
      "options.checkpoint",
      "TCP_REPAIR: the socket is taken down and made again, then used",
      [](End& end) {
        end.SendAll(end.Bytes(100));
        end.AwaitDelivered();
        end.Meet();
        end.Meet();
        end.SendAll(end.Bytes(50));
        end.ReadExactly(30);
        end.Meet();
      },
      [](End& end) {
        end.Meet();
        end.Await(POLLIN);
        const int fd = end.fd();
        int on = 1;
        end.NoteResult("TCP_REPAIR", setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)));
        uint32_t sequence[2];
        std::string queue[2];
        for (const int which : {TCP_RECV_QUEUE, TCP_SEND_QUEUE}) {
          setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &which, sizeof(which));
          socklen_t size = sizeof(uint32_t);
          getsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence[which - TCP_RECV_QUEUE], &size);
          char data[1000];
          const ssize_t got = recv(fd, data, sizeof(data), MSG_PEEK | MSG_DONTWAIT);
          end.Note(std::string(which == TCP_RECV_QUEUE ? "receive" : "send") + " queue of " +
                   std::to_string(got > 0 ? got : 0));
          queue[which - TCP_RECV_QUEUE].assign(data, got > 0 ? got : 0);
        }
        struct sockaddr_storage local = {}, remote = {};
        socklen_t size = sizeof(local), remote_size = sizeof(remote);
        getsockname(fd, reinterpret_cast<struct sockaddr*>(&local), &size);
        getpeername(fd, reinterpret_cast<struct sockaddr*>(&remote), &remote_size);
        struct tcp_repair_window window = {};
        socklen_t window_size = sizeof(window);
        getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &window_size);
        const struct tcp_info info = InfoOf(fd);
        end.socket().Reset();  // no FIN in repair mode

        UniqueFd made(socket(local.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
        for (const int which : {TCP_RECV_QUEUE, TCP_SEND_QUEUE}) {
          setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_QUEUE, &which, sizeof(which));
          const uint32_t start =
              sequence[which - TCP_RECV_QUEUE] -
              static_cast<uint32_t>(which == TCP_RECV_QUEUE ? queue[0].size() : queue[1].size());
          setsockopt(made.get(), IPPROTO_TCP, TCP_QUEUE_SEQ, &start, sizeof(start));
        }
        end.NoteResult("bind", bind(made.get(), reinterpret_cast<struct sockaddr*>(&local), size));
        end.NoteResult("connect", connect(made.get(), reinterpret_cast<struct sockaddr*>(&remote),
                                          remote_size));
        std::vector<struct tcp_repair_opt> options;
        options.push_back({kMaxSegment, info.tcpi_snd_mss});
        options.push_back({kWindowScale, static_cast<uint32_t>(info.tcpi_snd_wscale) |
                                             static_cast<uint32_t>(info.tcpi_rcv_wscale) << 16});
        setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                   options.size() * sizeof(options[0]));
        const int receive = TCP_RECV_QUEUE;
        setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_QUEUE, &receive, sizeof(receive));
        if (!queue[0].empty()) {
          end.NoteResult("refilling", send(made.get(), queue[0].data(), queue[0].size(), 0));
        }
        const int none = 0;
        setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_QUEUE, &none, sizeof(none));
        setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, sizeof(window));
        int off = 0;
        end.NoteResult("TCP_REPAIR off",
                       setsockopt(made.get(), IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)));
        // Else the port stays taken for the next run.
        setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        const struct linger reset_on_close = {1, 0};
        setsockopt(made.get(), SOL_SOCKET, SO_LINGER, &reset_on_close, sizeof(reset_on_close));
        end.socket() = std::move(made);
        end.ReadExactly(100);
        end.Meet();
        end.ReadExactly(50);
        end.SendAll(end.Bytes(30));
        end.Meet();
      },
      Start::kBoth,
      {IpMode::kV4, IpMode::kV6}};
}

}  // namespace

Cases OptionsCases() {
  return {TcpInfo(),    TcpInfoTimes(),   Outq(),        Names(),     Cookie(),
          Timestamps(), SendTimestamps(), Simple(),      Ulp(),       KernelTls(),
          Meminfo(),    Filter(),         FilterDrops(), Checkpoint()};
}

}  // namespace shunt::conformance
