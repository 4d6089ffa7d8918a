// SPDX-License-Identifier: Apache-2.0
#include "tests/support/transcript.h"

#include <sys/socket.h>

#include "agent/base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(TranscriptTest, NotesWhatACallReturned) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  UniqueFd a(ends[0]), b(ends[1]);
  Transcript transcript;
  transcript.Send("a", a.get(), "hello");
  transcript.Recv("b", b.get(), 100);
  transcript.Recv("b", b.get(), 100, MSG_DONTWAIT);
  b.Reset();
  transcript.Send("a", a.get(), "hello");
  transcript.ReadToEnd("a", a.get());
  EXPECT_THAT(transcript.lines(),
              ElementsAre("a send 5 bytes \"hello\" -> 5", "b recv 100 -> 5 bytes \"hello\"",
                          "b recv 100 DONTWAIT -> EAGAIN", "a send 5 bytes \"hello\" -> EPIPE",
                          "a read to the end: 0 bytes, then EOF"));
}

TEST(TranscriptTest, SamePrintsTheLinesThatDiffer) {
  Transcript plain, accelerated;
  plain.Note("one");
  plain.Note("two");
  EXPECT_FALSE(Same(plain, accelerated));
  accelerated.Note("one");
  accelerated.Note("too");
  const testing::AssertionResult result = Same(plain, accelerated);
  EXPECT_FALSE(result);
  EXPECT_THAT(result.message(), HasSubstr("  one\n- two\n+ too\n"));
  EXPECT_TRUE(Same(plain, plain));
}

}  // namespace
}  // namespace shunt::test
