// SPDX-License-Identifier: Apache-2.0
//
// io_uring: send, recv, multishot recv, splice, poll. By system calls, so that no
// library is needed.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/end.h"
#include "tests/support/transcript.h"

namespace shunt::conformance {
namespace {

std::string NoUring() {
  struct io_uring_params params = {};
  const int fd = static_cast<int>(syscall(__NR_io_uring_setup, 2, &params));
  if (fd < 0) {
    return "io_uring is switched off here: sysctl kernel.io_uring_disabled=0";
  }
  close(fd);
  return "";
}

// A small ring: one operation is prepared and submitted at a time.
class Ring {
 public:
  Ring() {
    struct io_uring_params params = {};
    fd_.Reset(static_cast<int>(syscall(__NR_io_uring_setup, 8, &params)));
    const size_t size = std::max(params.sq_off.array + params.sq_entries * sizeof(uint32_t),
                                 params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    ring_ = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_POPULATE, fd_.get(), IORING_OFF_SQ_RING));
    entries_ = static_cast<io_uring_sqe*>(mmap(nullptr, params.sq_entries * sizeof(io_uring_sqe),
                                               PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                                               fd_.get(), IORING_OFF_SQES));
    params_ = params;
  }

  io_uring_sqe* Prepare(uint8_t operation, int fd, const void* address, uint32_t size) {
    const uint32_t tail = *Word(params_.sq_off.tail), mask = *Word(params_.sq_off.ring_mask);
    io_uring_sqe* entry = &entries_[tail & mask];
    memset(entry, 0, sizeof(*entry));
    entry->opcode = operation;
    entry->fd = fd;
    entry->addr = reinterpret_cast<uint64_t>(address);
    entry->len = size;
    Word(params_.sq_off.array)[tail & mask] = tail & mask;
    __atomic_store_n(Word(params_.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    pending_++;
    return entry;
  }

  void Submit() {
    syscall(__NR_io_uring_enter, fd_.get(), pending_, 0, 0, nullptr, 0);
    pending_ = 0;
  }

  // The next completion; false after `ms`.
  bool Next(End& end, io_uring_cqe* completion, int ms = 2000) {
    uint32_t* head = Word(params_.cq_off.head);
    if (*head == __atomic_load_n(Word(params_.cq_off.tail), __ATOMIC_ACQUIRE)) {
      struct pollfd entry = {fd_.get(), POLLIN, 0};
      end.Call("io_uring wait", [&] { return poll(&entry, 1, ms); });
      if (*head == __atomic_load_n(Word(params_.cq_off.tail), __ATOMIC_ACQUIRE)) {
        return false;
      }
    }
    const auto* all = reinterpret_cast<io_uring_cqe*>(ring_ + params_.cq_off.cqes);
    *completion = all[*head & *Word(params_.cq_off.ring_mask)];
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return true;
  }

  void NoteNext(End& end, const std::string& call) {
    io_uring_cqe completion;
    if (!Next(end, &completion)) {
      end.Note(call + " -> no completion");
      return;
    }
    errno = completion.res < 0 ? -completion.res : 0;
    end.NoteResult(call, completion.res < 0 ? -1 : completion.res);
  }

 private:
  uint32_t* Word(uint32_t offset) { return reinterpret_cast<uint32_t*>(ring_ + offset); }

  UniqueFd fd_;
  struct io_uring_params params_ = {};
  char* ring_ = nullptr;
  io_uring_sqe* entries_ = nullptr;
  unsigned pending_ = 0;
};

Case Make(const char* name, const char* what, Program client, Program server) {
  Case test = {name, what, std::move(client), std::move(server)};
  test.missing = NoUring;
  return test;
}

Case Send() {
  return Make(
      "uring.send", "io_uring send, writev and send with MSG_WAITALL",
      [](End& end) {
        Ring ring;
        const std::string a = end.Bytes(100), b = end.Bytes(50000), c = end.Bytes(3000);
        ring.Prepare(IORING_OP_SEND, end.fd(), a.data(), a.size());
        ring.Submit();
        ring.NoteNext(end, "send 100");
        ring.Prepare(IORING_OP_SEND, end.fd(), b.data(), b.size())->msg_flags = MSG_WAITALL;
        ring.Submit();
        ring.NoteNext(end, "send 50000 WAITALL");
        ring.Prepare(IORING_OP_WRITE, end.fd(), c.data(), c.size());
        ring.Submit();
        ring.NoteNext(end, "write 3000");
        end.Meet();
      },
      [](End& end) {
        end.ReadExactly(53100);
        end.Meet();
      });
}

Case Receive() {
  return Make(
      "uring.recv", "io_uring recv, armed before the data and after it",
      [](End& end) {
        end.AwaitPeerBlocked();
        end.SendAll(end.Bytes(100));
        end.Meet();
        end.SendAll(end.Bytes(200));
        end.AwaitDelivered();
        end.Meet();
        end.Meet();
      },
      [](End& end) {
        Ring ring;
        char buffer[1000];
        ring.Prepare(IORING_OP_RECV, end.fd(), buffer, sizeof(buffer));
        ring.Submit();
        ring.NoteNext(end, "recv armed first");
        end.Meet();
        end.Meet();
        end.Await(POLLIN);
        ring.Prepare(IORING_OP_RECV, end.fd(), buffer, sizeof(buffer));
        ring.Submit();
        ring.NoteNext(end, "recv");
        end.Note(test::BytesText({buffer, 200}));
        end.Meet();
      });
}

Case ReceiveAll() {
  return Make(
      "uring.recv_waitall", "io_uring recv with MSG_WAITALL, the data in pieces",
      [](End& end) {
        for (int i = 0; i < 5; i++) {
          end.AwaitPeerBlocked();
          end.SendAll(end.Bytes(100));
        }
        end.Meet();
      },
      [](End& end) {
        Ring ring;
        char buffer[500];
        ring.Prepare(IORING_OP_RECV, end.fd(), buffer, sizeof(buffer))->msg_flags = MSG_WAITALL;
        ring.Submit();
        ring.NoteNext(end, "recv 500 WAITALL");
        end.Meet();
      });
}

Case Multishot() {
  return Make(
      "uring.recv_multishot", "io_uring multishot recv with provided buffers",
      [](End& end) {
        end.Meet();
        for (int i = 0; i < 4; i++) {
          end.SendAll(end.Bytes(100));
          end.AwaitDelivered();
          end.Meet();
          end.Meet();
        }
        end.Shutdown(SHUT_WR);
      },
      [](End& end) {
        Ring ring;
        std::vector<char> buffers(16 * 1024);
        io_uring_sqe* provide = ring.Prepare(IORING_OP_PROVIDE_BUFFERS, 16, buffers.data(), 1024);
        provide->buf_group = 1;
        ring.Submit();
        ring.NoteNext(end, "provide buffers");
        io_uring_sqe* receive = ring.Prepare(IORING_OP_RECV, end.fd(), nullptr, 0);
        receive->flags = IOSQE_BUFFER_SELECT;
        receive->buf_group = 1;
        receive->ioprio = IORING_RECV_MULTISHOT;
        ring.Submit();
        end.Meet();
        for (int i = 0; i < 4; i++) {
          end.Meet();
          io_uring_cqe completion;
          size_t got = 0;
          while (got < 100 && ring.Next(end, &completion, 1000) && completion.res > 0) {
            got += completion.res;
          }
          end.Note("multishot " + std::to_string(got));
          end.Meet();
        }
        ring.NoteNext(end, "multishot at the end");
      });
}

Case Splice() {
  return Make(
      "uring.splice", "io_uring splice from the socket to a pipe",
      [](End& end) {
        end.SendAll(end.Bytes(3000));
        end.AwaitDelivered();
        end.Meet();
        end.Meet();
      },
      [](End& end) {
        end.Meet();
        end.Await(POLLIN);
        int ends[2];
        (void)!pipe2(ends, O_CLOEXEC);
        const UniqueFd in(ends[0]), out(ends[1]);
        Ring ring;
        io_uring_sqe* entry = ring.Prepare(IORING_OP_SPLICE, out.get(), nullptr, 3000);
        entry->off = static_cast<uint64_t>(-1);
        entry->splice_off_in = static_cast<uint64_t>(-1);
        entry->splice_fd_in = end.fd();
        entry->splice_flags = SPLICE_F_NONBLOCK;
        ring.Submit();
        ring.NoteNext(end, "splice 3000");
        end.Meet();
      });
}

Case Poll() {
  return Make(
      "uring.poll", "io_uring poll, armed before the data",
      [](End& end) {
        end.AwaitPeerBlocked();
        end.SendAll(end.Bytes(100));
        end.Meet();
      },
      [](End& end) {
        Ring ring;
        ring.Prepare(IORING_OP_POLL_ADD, end.fd(), nullptr, 0)->poll32_events = POLLIN;
        ring.Submit();
        ring.NoteNext(end, "poll");
        end.ReadExactly(100);
        end.Meet();
      });
}

Case SendZc() {
  return Make(
      "uring.send_zc", "io_uring zero-copy send: result and notification",
      [](End& end) {
        Ring ring;
        const std::string data = end.Bytes(30000);
        ring.Prepare(IORING_OP_SEND_ZC, end.fd(), data.data(), data.size());
        ring.Submit();
        ring.NoteNext(end, "send_zc");
        end.Meet();
        io_uring_cqe completion;
        end.Note(ring.Next(end, &completion, 1500) && (completion.flags & IORING_CQE_F_NOTIF) != 0
                     ? "notified"
                     : "no notification");
      },
      [](End& end) {
        end.ReadExactly(30000);
        end.Meet();
      });
}

}  // namespace

Cases UringCases() {
  return {Send(), Receive(), ReceiveAll(), Multishot(), Splice(), Poll(), SendZc()};
}

}  // namespace shunt::conformance
