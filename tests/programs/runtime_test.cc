// SPDX-License-Identifier: Apache-2.0
//
// Readers of language runtimes, slower than the sender.
#include "tests/programs/program_fixture.h"

namespace shunt::test {
namespace {

class RuntimeTest : public ProgramTest {
 protected:
  void Upload(const std::vector<std::string>& options = {}) {
    const std::string input = MakeInput(UploadBytes());
    const std::string expected = Sha256(input);
    for (int run = 0; run < UploadRuns(); run++) {
      SCOPED_TRACE("run " + std::to_string(run));
      std::vector<std::string> arguments = {"upload", "8080", input};
      arguments.insert(arguments.end(), options.begin(), options.end());
      ASSERT_EQ(Peer(arguments), expected);
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
  Upload();
}

TEST_F(RuntimeTest, NodePausesAndResumes) {
  if (const std::string missing = MissingPrograms({"node"}); !missing.empty()) {
    GTEST_SKIP() << missing;
  }
  StartListed({8080});
  StartServer("node", {"node", Source("paused_reader.js"), "8080"}, 8080);
  Upload();
}

// One thread blocks in send() while another one blocks in recv(): seen on the first
// connection, which may get EAGAIN if it has to wait (docs/hazards.md, row 17); no
// other one is enrolled.
TEST_F(RuntimeTest, PythonSendsAndReceivesInTwoThreadsOnceThatIsKnown) {
  StartListed({8080});
  StartPeer({"sink", "8080"}, 8080);
  Peer({"upload", "8080", MakeInput(1000), "--threads"});
  Upload({"--threads"});
  EXPECT_FALSE(agent().LogLines("hazards", "two_threads").empty()) << agent().Output();
}

}  // namespace
}  // namespace shunt::test
