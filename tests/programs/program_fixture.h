// SPDX-License-Identifier: Apache-2.0
//
// Real programs in a pod whose ports the agent accelerates. Every wait has an
// end; what was stuck then is printed: the agent's pairs, the pod's sockets, the
// last words of the programs.
//
// SHUNT_PROGRAMS_POD=plain runs them in a pod that is not listed: proof that a
// failure is not the test's own.
#ifndef SHUNT_TESTS_PROGRAMS_PROGRAM_FIXTURE_H_
#define SHUNT_TESTS_PROGRAMS_PROGRAM_FIXTURE_H_

#include <cstdint>
#include <list>
#include <string>
#include <vector>

#include "tests/support/pod_fixture.h"

namespace shunt::test {

// How much is uploaded, and how often, over connections of their own. By hand,
// SHUNT_UPLOAD_MB=200 SHUNT_UPLOAD_RUNS=20 is the proof that is too long for CTest.
uint64_t UploadBytes();
int UploadRuns();

// Those of `names` that are not in PATH, with what to do; empty: all are there.
std::string MissingPrograms(const std::vector<std::string>& names);

// Whom programs run as that refuse to be root.
inline constexpr int kNobody = 65534;

class ProgramTest : public PodTest {
 protected:
  static constexpr milliseconds kProgramPatience{30000};

  void SetUp() override;
  // Expects that pairs were made, unless in the plain pod, and ends the programs.
  void TearDown() override;

  // The agent, with these server ports listed.
  void StartListed(const std::vector<uint16_t>& ports);

  // A server in the pod until the test ends; waits until it listens.
  void StartServer(const std::string& name, const std::vector<std::string>& arguments,
                   uint16_t port, int uid = 0, const Where& where = Where::Here());
  // Runs a program in the pod, which must exit 0; its output without the last newline.
  std::string RunInPod(const std::vector<std::string>& arguments, int uid = 0,
                       milliseconds patience = kProgramPatience,
                       const Where& where = Where::Here());
  // The same with a verb of peer.py.
  std::string Peer(std::vector<std::string> arguments, const Where& where = Where::Here());
  void StartPeer(std::vector<std::string> arguments, uint16_t port,
                 const Where& where = Where::Here());

  // A file of random bytes.
  std::string MakeInput(uint64_t bytes);
  // A directory of the programs' own.
  std::string MakeDirectory(const std::string& name, int uid = kNobody);
  std::string WriteText(const std::string& path, const std::string& text);
  static std::string Sha256(const std::string& path);
  // Where a source file of tests/programs is.
  static std::string Source(const std::string& name);

 private:
  struct Server {
    std::string name;
    std::string output;
    Child process;
  };

  std::vector<std::string> InPod(const std::vector<std::string>& arguments, int uid) const;
  Pod& pod() const { return plain_only_ ? plain() : fast(); }
  void PrintStuck();

  bool plain_only_ = false;
  std::string directory_;
  std::list<Server> servers_;
};

}  // namespace shunt::test

#endif  // SHUNT_TESTS_PROGRAMS_PROGRAM_FIXTURE_H_
