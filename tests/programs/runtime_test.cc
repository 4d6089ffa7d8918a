// SPDX-License-Identifier: Apache-2.0
//
// Readers of language runtimes, slower than the sender.
#include "tests/programs/program_fixture.h"

namespace shunt::test {
namespace {

constexpr uint64_t kBytes = 20 << 20;

class RuntimeTest : public ProgramTest {
 protected:
  // Several times over connections of their own, since not each one stalls.
  void UploadTwice() {
    const std::string input = MakeInput(kBytes);
    const std::string expected = Sha256(input);
    for (int run = 0; run < 2; run++) {
      EXPECT_EQ(Peer({"upload", "8080", input}), expected) << "run " << run;
    }
  }
};

// Java's InputStream.available() is FIONREAD.
TEST_F(RuntimeTest, JavaReadsWhatIsAvailable) {
  if (const std::string missing = MissingPrograms({"java", "javac"}); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080});
  StartServer("java",
              {"java", "-Xmx128m", "-XX:+UseSerialGC", Source("AvailableReader.java"), "8080"},
              8080);
  UploadTwice();
}

TEST_F(RuntimeTest, NodePausesAndResumes) {
  if (const std::string missing = MissingPrograms({"node"}); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080});
  StartServer("node", {"node", Source("paused_reader.js"), "8080"}, 8080);
  UploadTwice();
}

// One thread blocks in send() while another one blocks in recv().
TEST_F(RuntimeTest, PythonSendsAndReceivesInTwoThreads) {
  StartListed({8080});
  StartPeer({"sink", "8080"}, 8080);
  const std::string input = MakeInput(kBytes);
  for (int run = 0; run < 3; run++) {
    EXPECT_EQ(Peer({"upload", "8080", input, "--threads"}), Sha256(input)) << "run " << run;
  }
}

}  // namespace
}  // namespace shunt::test
