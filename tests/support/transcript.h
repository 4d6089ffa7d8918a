// SPDX-License-Identifier: Apache-2.0
//
// What a program saw of its sockets, line by line: return values, errno, bytes,
// poll masks. The same program on plain TCP and on an accelerated connection
// must leave the same transcript. Not thread-safe.
#ifndef SHUNT_TESTS_SUPPORT_TRANSCRIPT_H_
#define SHUNT_TESTS_SUPPORT_TRANSCRIPT_H_

#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/stop.h"

namespace shunt::test {

class Transcript {
 public:
  void Note(std::string line) { lines_.push_back(std::move(line)); }

  // Each makes one call, which must not block for long, and notes how it ended.
  // `end` names the socket: "client".
  ssize_t Send(const std::string& end, int fd, std::string_view data, int flags = 0);
  std::string Recv(const std::string& end, int fd, size_t size, int flags = 0);
  void Shutdown(const std::string& end, int fd, int how);
  void SocketError(const std::string& end, int fd);  // SO_ERROR
  // Waits until poll() says one of `wanted`, then notes all that it says.
  void Poll(const std::string& end, int fd, short wanted, const Where& where = Where::Here());

  // Waits for the bytes, in however many pieces they come.
  std::string ReadExactly(const std::string& end, int fd, size_t size,
                          const Where& where = Where::Here());
  // Waits for the end of the stream or an error; notes which, and what came.
  void ReadToEnd(const std::string& end, int fd, const Where& where = Where::Here());

  const std::vector<std::string>& lines() const { return lines_; }

 private:
  void Result(std::string call, ssize_t result);

  std::vector<std::string> lines_;
};

// "10 bytes \"helloworld\"", or a hash where there are many.
std::string BytesText(std::string_view data);

// EXPECT_TRUE(Same(plain, accelerated)): prints the lines that differ.
testing::AssertionResult Same(const Transcript& plain, const Transcript& accelerated);

}  // namespace shunt::test

#endif  // SHUNT_TESTS_SUPPORT_TRANSCRIPT_H_
