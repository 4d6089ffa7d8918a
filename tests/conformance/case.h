// SPDX-License-Identifier: Apache-2.0
//
// A case: two small programs, one at each end of a connection, written once and
// run on plain TCP and on an engine. What they note is their transcript, and the
// two transcripts must be equal. Nothing in a case may know where it runs.
#ifndef SHUNT_TESTS_CONFORMANCE_CASE_H_
#define SHUNT_TESTS_CONFORMANCE_CASE_H_

#include <functional>
#include <string>
#include <vector>

#include "tests/support/sockets.h"
#include "tests/support/stop.h"

namespace shunt::conformance {

using test::IpMode;
using test::milliseconds;

class End;
using Program = std::function<void(End&)>;

// What has happened on a connection before its programs start.
enum class Start {
  kCold,  // nothing
  kWarm,  // a few small requests and answers, all read: the engine is at work
  kBoth,  // two cases, ".cold" and ".warm"
};

// How the client reaches the server.
enum class Route {
  kDirect,
  kRedirect,  // dials a port that nftables redirects to the server's
  kTproxy,    // dials a port that nftables hands to the server's listener
  kOwn,       // the programs listen and connect themselves
};

struct Case {
  std::string name;  // "receive.waitall"; the part before the dot is the file
  std::string what;  // what the two programs do, in one line
  Program client;
  Program server;
  Start start = Start::kBoth;
  std::vector<IpMode> families = {IpMode::kV4, IpMode::kV6};
  Route route = Route::kDirect;
  // For sockets that the suite makes: before listen(), before connect().
  std::function<void(int fd)> listener = {};
  std::function<void(int fd)> dialler = {};
  // After this long a run is over, and what an end was doing is its last line.
  milliseconds patience{5000};
  // How often it is run on plain TCP to learn what TCP may do, and on the engine.
  int plain_runs = 4;
  int engine_runs = 3;
  // False: the engine may refuse this connection, and then nothing is compared
  // that was accelerated.
  bool must_enrol = true;
  // Empty if the machine can run it; else what is missing.
  std::function<std::string()> missing = {};
};

// "v4", "v6", "v4-mapped" or "v4-to-dual": without spaces, for names of rows.
std::string FamilyOf(IpMode mode);

using Cases = std::vector<Case>;

// Every case of the suite, Start::kBoth taken apart, in the order of the table.
Cases AllCases();

// One function a file.
Cases SendCases();
Cases ReceiveCases();
Cases SpliceCases();
Cases PollCases();
Cases EndingCases();
Cases OptionsCases();
Cases ReuseCases();
Cases SharingCases();
Cases BuffersCases();
Cases BulkCases();
Cases TimingCases();
Cases HandshakeCases();
Cases UringCases();
Cases ProgramCases();

}  // namespace shunt::conformance

#endif  // SHUNT_TESTS_CONFORMANCE_CASE_H_
