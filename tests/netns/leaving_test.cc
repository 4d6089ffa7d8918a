// SPDX-License-Identifier: Apache-2.0
//
// Pairs that go back to TCP because a program in the kernel said so: in time,
// without losing a byte, and for good.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/patterned.h"
#include "tests/support/pod_fixture.h"

namespace shunt::test {
namespace {

class LeavingTest : public PodTest {
 protected:
  void WaitLeft(const Where& where = Where::Here()) {
    WaitUntil(
        "the pair has left",
        [&] { return kernel().Entries("sockets") == 0 && kernel().Entries("ends") == 0; },
        kPatience, where);
  }
};

// Sends messages of one size, with a blocking reader at the other end; the time
// from the decision to leave until both keys are gone.
void Stream(const Connection& connection, size_t size, int messages) {
  const std::string message(size, 'x');
  Worker reader([&] { ReadExactly(connection.server.get(), size * messages); });
  for (int i = 0; i < messages; i++) {
    SendAll(connection.client.get(), message);
  }
}

TEST_F(LeavingTest, AStreamLeavesWhileItRuns) {
  StartAgent();
  for (const IpMode mode : kIpModes) {
    SCOPED_TRACE(mode);
    const uint64_t streams = kernel().Count(SHUNT_EXIT_LEAVING_STREAM) +
                             kernel().Count(SHUNT_EXIT_LEAVING_BACK_PRESSURE);
    Connection connection = MakeFastPair(mode);
    Stream(connection, 64, 20000);
    WaitLeft();
    EXPECT_EQ(kernel().Count(SHUNT_EXIT_LEAVING_STREAM) +
                  kernel().Count(SHUNT_EXIT_LEAVING_BACK_PRESSURE),
              streams + 1)
        << kernel().CountsText();
    ExpectPlain(connection);
  }
  EXPECT_FALSE(agent().LogLines("msg", "pair goes back to TCP").empty());
}

TEST_F(LeavingTest, ADialogueStays) {
  StartAgent();
  Connection connection = MakeFastPair();
  for (int i = 0; i < 2000; i++) {
    PingPong(connection);
  }
  ExpectRedirects(connection);
  EXPECT_EQ(kernel().Entries("sockets"), 2u) << kernel().CountsText();
}

// A request in four pieces, an answer in four pieces.
TEST_F(LeavingTest, ADialogueInSeveralMessagesStays) {
  StartAgent();
  Connection connection = MakeFastPair();
  for (int i = 0; i < 500; i++) {
    for (int piece = 0; piece < 4; piece++) {
      SendAll(connection.client.get(), "req");
    }
    ReadExactly(connection.server.get(), 12);
    for (int piece = 0; piece < 4; piece++) {
      SendAll(connection.server.get(), "ans");
    }
    ReadExactly(connection.client.get(), 12);
  }
  ExpectRedirects(connection);
  EXPECT_EQ(kernel().Entries("sockets"), 2u) << kernel().CountsText();
}

TEST_F(LeavingTest, AReaderThatNeverReadsKeepsItsBytesAndThePairInOrder) {
  StartAgent();
  Connection connection = MakeFastPair();
  const Pattern pattern(RunSeed());
  uint64_t sent = SendUntilFull(
      connection.client.get(), 4096,
      [&](uint64_t offset, char* data, size_t size) { pattern.Fill(offset, data, size); });
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(kernel().Entries("sockets"), 2u) << "nothing may go while bytes are unread";
  const std::string got = ReadExactly(connection.server.get(), sent);
  EXPECT_EQ(pattern.Difference(0, got), std::nullopt);
  WaitLeft();
  ExpectPlain(connection);
}

// Whatever two programs do while their pair is taken back to TCP, they get what
// was sent. Each round makes a pair leave in the middle of traffic.
TEST_F(LeavingTest, LosesNothingInManyRandomRounds) {
  StartAgent();
  Random random(RunSeed());
  for (int round = 0; round < 60; round++) {
    Connection connection = MakeFastPair();
    const Pattern up(RunSeed() + 2 * round), down(RunSeed() + 2 * round + 1);
    const uint64_t bytes = 1 << random.Between(12, 20);
    const size_t largest = size_t{1} << random.Between(4, 16);
    const bool both_ways = random.OneIn(2);
    const bool pauses = random.OneIn(3);
    const auto send_stream = [&](int fd, const Pattern& pattern, uint64_t seed) {
      Random mine(seed);
      std::vector<char> buffer(largest);
      for (uint64_t sent = 0; sent < bytes;) {
        const size_t size = std::min<uint64_t>(mine.Size(largest), bytes - sent);
        pattern.Fill(sent, buffer.data(), size);
        SendAll(fd, std::string_view(buffer.data(), size));
        sent += size;
        if (pauses && mine.OneIn(50)) {
          std::this_thread::sleep_for(milliseconds(mine.Between(0, 3)));
        }
      }
    };
    const auto read_stream = [&](int fd, const Pattern& pattern) {
      const std::string got = ReadExactly(fd, bytes);
      if (const auto difference = pattern.Difference(0, got)) {
        Stop(Where::Here(), "round " + std::to_string(round) + ": " + *difference);
      }
    };
    const int client = connection.client.get(), server = connection.server.get();
    std::vector<Worker> workers;
    workers.emplace_back([&] { send_stream(client, up, RunSeed() + round); });
    workers.emplace_back([&] { read_stream(server, up); });
    if (both_ways) {
      workers.emplace_back([&] { send_stream(server, down, RunSeed() - round); });
      workers.emplace_back([&] { read_stream(client, down); });
    }
    workers.clear();
    PingPong(connection);
  }
  EXPECT_GT(kernel().Count(SHUNT_EXIT_LEAVING_STREAM) +
                kernel().Count(SHUNT_EXIT_LEAVING_BACK_PRESSURE) +
                kernel().Count(SHUNT_EXIT_LEAVING_MIXED),
            20u)
      << kernel().CountsText();
}

// The agent dies before it can carry out what the kernel decided: traffic goes on
// in order; the next agent carries it out.
TEST_F(LeavingTest, TheNextAgentTakesUpWhatAnEarlierOneLeft) {
  StartAgent();
  Connection connection = MakeFastPair();
  ExpectRedirects(connection);
  agent().KillHard();
  Stream(connection, 64, 5000);
  EXPECT_EQ(kernel().Entries("sockets"), 2u);
  PingPong(connection);
  agent().StartReady(1);
  WaitLeft();
  ExpectPlain(connection);
}

void Note(Transcript* transcript, const std::string& call, ssize_t result) {
  transcript->Note(call + ": " + std::to_string(result) +
                   (result < 0 ? std::string(" ") + strerror(errno) : ""));
}

// ---- hazards: a new workload ---------------------------------------------------

class HazardTest : public LeavingTest {
 protected:
  void SetUp() override {
    LeavingTest::SetUp();
    if (!IsSkipped()) {
      agent().LearnWorkloads();
    }
  }

  // Runs a program on TCP and in the listed pod, where its workload is new, and
  // expects the same; then that the pair is plain, and that the next is not enrolled.
  void ExpectSameAndDeclined(const Program& program, const std::string& hazard) {
    StartAgent();
    for (const IpMode mode : {IpMode::kV4, IpMode::kV6}) {
      SCOPED_TRACE(mode);
      Transcript expected, actual;
      Connection slow = MakePair(plain(), mode, kPort);
      program(slow, expected);
      Connection fast_pair = MakePair(fast(), mode, kPort);
      program(fast_pair, actual);
      EXPECT_TRUE(Same(expected, actual));
      WaitLeft();
      ExpectPlain(fast_pair);
    }
    EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), 1u) << "the second was not to be enrolled";
    EXPECT_EQ(kernel().Count(SHUNT_EXIT_REFUSED_HAZARD), 1u) << kernel().CountsText();
    EXPECT_EQ(kernel().RedirectedBytes(), 0u);
    EXPECT_FALSE(agent().LogLines("hazards", hazard).empty()) << agent().Output();
  }
};

TEST_F(HazardTest, ANewWorkloadIsAcceleratedAfterAFewReceives) {
  StartAgent();
  Connection connection = MakeFastPair();
  ExpectPlain(connection);
  for (int i = 0; i < 8; i++) {
    PingPong(connection);
  }
  ExpectRedirects(connection);
  ExpectRedirects(MakeFastPair());  // and the next at once
}

TEST_F(HazardTest, WaitAll) {
  ExpectSameAndDeclined(
      [](Connection& connection, Transcript& transcript) {
        char buffer[1000];
        SendAll(connection.client.get(), std::string(100, 'a'));
        Worker later([&] {
          std::this_thread::sleep_for(milliseconds(50));
          SendAll(connection.client.get(), std::string(900, 'b'));
        });
        Note(&transcript, "recv",
             recv(connection.server.get(), buffer, sizeof(buffer), MSG_WAITALL));
      },
      "msg_waitall");
}

TEST_F(HazardTest, Splice) {
  ExpectSameAndDeclined(
      [](Connection& connection, Transcript& transcript) {
        int pipes[2];
        ASSERT_EQ(pipe(pipes), 0);
        SendAll(connection.client.get(), std::string(5000, 'a'));
        WaitPoll(connection.server.get(), POLLIN);
        Note(&transcript, "splice",
             splice(connection.server.get(), nullptr, pipes[1], nullptr, 5000, SPLICE_F_NONBLOCK));
        close(pipes[0]);
        close(pipes[1]);
      },
      "splice");
}

TEST_F(HazardTest, OutOfBand) {
  ExpectSameAndDeclined(
      [](Connection& connection, Transcript& transcript) {
        Note(&transcript, "send", send(connection.client.get(), "!", 1, MSG_OOB));
        WaitPoll(connection.server.get(), POLLPRI);
        char byte = 0;
        Note(&transcript, "recv", recv(connection.server.get(), &byte, 1, MSG_OOB));
        Note(&transcript, "byte", byte);
      },
      "msg_oob");
}

TEST_F(HazardTest, LowWater) {
  ExpectSameAndDeclined(
      [](Connection& connection, Transcript& transcript) {
        SetOption(connection.server.get(), SOL_SOCKET, SO_RCVLOWAT, 100);
        SendAll(connection.client.get(), std::string(50, 'a'));
        std::this_thread::sleep_for(milliseconds(20));
        Note(&transcript, "events", PollNow(connection.server.get()) & POLLIN);
        SendAll(connection.client.get(), std::string(50, 'a'));
        WaitPoll(connection.server.get(), POLLIN);
        ReadExactly(connection.server.get(), 100);
        SetOption(connection.server.get(), SOL_SOCKET, SO_RCVLOWAT, 1);
      },
      "so_rcvlowat");
}

TEST_F(HazardTest, ZeroCopy) {
  ExpectSameAndDeclined(
      [](Connection& connection, Transcript& transcript) {
        SetOption(connection.client.get(), SOL_SOCKET, SO_ZEROCOPY, 1);
        WaitUntil("options took effect", [] { return true; });
        const std::string data(10000, 'a');
        Note(&transcript, "send",
             send(connection.client.get(), data.data(), data.size(), MSG_ZEROCOPY));
        ReadExactly(connection.server.get(), data.size());
      },
      "zerocopy");
}

// What was learnt outlives the agent and its pins.
TEST_F(HazardTest, IsRememberedByAnAgentThatStartsAnew) {
  StartAgent();
  {
    Connection connection = MakeFastPair();
    SetOption(connection.server.get(), SOL_SOCKET, SO_RCVLOWAT, 100);
    WaitLeft();
  }
  agent().Ctl({"drain"});
  agent().Terminate();
  agent().StartReady(1);
  Connection connection = MakePair(fast(), IpMode::kV4, kPort);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_PAIR_MADE), 0u);
  EXPECT_EQ(kernel().Count(SHUNT_EXIT_REFUSED_HAZARD), 1u) << kernel().CountsText();
  PingPong(connection);
}

}  // namespace
}  // namespace shunt::test
