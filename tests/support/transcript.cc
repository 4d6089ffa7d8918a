// SPDX-License-Identifier: Apache-2.0
#include "tests/support/transcript.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <cerrno>

#include "tests/support/patterned.h"
#include "tests/support/sockets.h"

namespace shunt::test {
namespace {

constexpr size_t kShort = 40;

std::string FlagText(int flags) {
  constexpr struct {
    int bit;
    const char* name;
  } kNames[] = {{MSG_DONTWAIT, "DONTWAIT"}, {MSG_PEEK, "PEEK"},        {MSG_NOSIGNAL, "NOSIGNAL"},
                {MSG_WAITALL, "WAITALL"},   {MSG_OOB, "OOB"},          {MSG_MORE, "MORE"},
                {MSG_TRUNC, "TRUNC"},       {MSG_FASTOPEN, "FASTOPEN"}};
  std::string text;
  for (const auto& [bit, name] : kNames) {
    if (flags & bit) {
      text += std::string(" ") + name;
    }
  }
  return text;
}

}  // namespace

std::string BytesText(std::string_view data) {
  std::string text = std::to_string(data.size()) + " bytes";
  if (data.empty()) {
    return text;
  }
  if (data.size() <= kShort &&
      std::all_of(data.begin(), data.end(), [](unsigned char byte) { return isprint(byte); })) {
    return text + " \"" + std::string(data) + "\"";
  }
  return text + " with hash " + HashOf(data);
}

void Transcript::Result(std::string call, ssize_t result) {
  const int error = errno;
  Note(call + " -> " + (result < 0 ? ErrnoName(error) : std::to_string(result)));
}

ssize_t Transcript::Send(const std::string& end, int fd, std::string_view data, int flags) {
  const ssize_t sent = send(fd, data.data(), data.size(), flags | MSG_NOSIGNAL);
  Result(end + " send " + BytesText(data) + FlagText(flags), sent);
  return sent;
}

std::string Transcript::Recv(const std::string& end, int fd, size_t size, int flags) {
  std::string data(size, '\0');
  const ssize_t got = recv(fd, data.data(), size, flags);
  const std::string call = end + " recv " + std::to_string(size) + FlagText(flags);
  if (got <= 0) {
    Result(call, got);
    return "";
  }
  data.resize(got);
  Note(call + " -> " + BytesText(data));
  return data;
}

void Transcript::Shutdown(const std::string& end, int fd, int how) {
  const int result = shutdown(fd, how);
  Result(end + " shutdown " + (how == SHUT_WR ? "WR" : how == SHUT_RD ? "RD" : "RDWR"), result);
}

void Transcript::SocketError(const std::string& end, int fd) {
  const int error = GetOption(fd, SOL_SOCKET, SO_ERROR);
  Note(end + " SO_ERROR -> " + (error == 0 ? "0" : ErrnoName(error)));
}

void Transcript::Poll(const std::string& end, int fd, short wanted, const Where& where) {
  WaitPoll(fd, wanted, kPatience, where);
  Note(end + " poll -> " + PollText(PollNow(fd)));
}

std::string Transcript::ReadExactly(const std::string& end, int fd, size_t size,
                                    const Where& where) {
  std::string data = test::ReadExactly(fd, size, where);
  Note(end + " read " + BytesText(data));
  return data;
}

void Transcript::ReadToEnd(const std::string& end, int fd, const Where& where) {
  const ToEnd result = test::ReadToEnd(fd, where);
  Note(end + " read to the end: " + BytesText(result.data) + ", then " +
       (result.error == 0 ? "EOF" : ErrnoName(result.error)));
}

testing::AssertionResult Same(const Transcript& plain, const Transcript& accelerated) {
  const auto& expected = plain.lines();
  const auto& actual = accelerated.lines();
  if (expected == actual) {
    return testing::AssertionSuccess();
  }
  testing::AssertionResult result =
      testing::AssertionFailure() << "the program saw a difference (- plain TCP, + accelerated):\n";
  for (size_t i = 0; i < std::max(expected.size(), actual.size()); i++) {
    const bool in_both = i < expected.size() && i < actual.size();
    if (in_both && expected[i] == actual[i]) {
      result << "  " << expected[i] << "\n";
      continue;
    }
    if (i < expected.size()) {
      result << "- " << expected[i] << "\n";
    }
    if (i < actual.size()) {
      result << "+ " << actual[i] << "\n";
    }
  }
  return result;
}

}  // namespace shunt::test
