// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/known_differences.h"

#include <fnmatch.h>

namespace shunt::conformance {

const std::vector<KnownDifference>& KnownDifferences() {
  static const std::vector<KnownDifference> kList = {
      // Row 3.
      {"splice.data_first.*", "sockhash", "splice() does not see bytes that were handed over", "3"},
      {"splice.call_first.*", "sockhash", "a sleeping splice() is not woken", "3"},
      {"splice.echo.*", "sockhash", "a proxy that uses splice() stands still", "3"},
      {"splice.mixed_with_recv.*", "sockhash", "a splice() after recv() hangs", "3"},
      {"splice.edge.*", "sockhash", "splice() misses bytes and gets no further edge", "3"},
      {"splice.sendfile_from/*", "sockhash", "sendfile() from the socket sees nothing", "3"},
      {"uring.splice.*", "sockhash", "splice by io_uring sees nothing", "3"},
      // Row 4.
      {"receive.waitall.*", "sockhash", "MSG_WAITALL returns the first part", "4"},
      {"receive.waitall_call_first.*", "sockhash", "MSG_WAITALL returns the first part", "4"},
      {"receive.waitall_timeout.*", "sockhash", "MSG_WAITALL returns before the time is over", "4"},
      {"receive.peek_waitall.*", "sockhash", "MSG_PEEK with MSG_WAITALL returns a part", "4"},
      // Row 5.
      {"receive.rcvlowat_after.*", "sockhash",
       "SO_RCVLOWAT set while bytes are unread is ignored for those", "5"},
      // Row 6.
      {"send.zerocopy.*", "sockhash", "no completion of MSG_ZEROCOPY arrives", "6"},
      // Row 7.
      {"send.oob.*", "sockhash", "MSG_OOB data comes in line, without POLLPRI and mark", "7"},
      {"send.oob_inline.*", "sockhash", "no POLLPRI and no mark for MSG_OOB data", "7"},
      {"send.sigurg.*", "sockhash", "no SIGURG for MSG_OOB data", "7"},
      // Row 9: who closes without reading does not reset.
      {"ending.close_unread.*", "sockhash", "the peer sees EOF where TCP resets", "9"},
      {"ending.close_partly_unread.*", "sockhash", "the peer sees EOF where TCP resets", "9"},
      {"ending.peer_killed_unread.*", "sockhash", "the peer sees EOF where TCP resets", "9"},
      // Row 10.
      {"options.tcp_info.*", "sockhash", "TCP_INFO does not count what was handed over", "10"},
      {"options.tcp_info_last_data/*", "sockhash", "TCP_INFO's times of the last data stand still",
       "10"},
      // Row 11.
      {"receive.fionread_large.*", "sockhash", "FIONREAD says 0 with TCP's bytes unread", "11"},
      {"receive.fionread_edge.*", "sockhash",
       "an edge-triggered reader that trusts FIONREAD stalls", "11"},
      {"handshake.defer_accept_fionread/*", "sockhash", "FIONREAD says 0 with TCP's bytes unread",
       "11"},
      // Row 17.
      {"ending.shutdown_rd_blocked.*", "sockhash", "a blocked recv() fails with EAGAIN", "17"},
      {"ending.reset_blocked_recv.*", "sockhash", "a blocked recv() fails with EAGAIN", "17"},
  };
  return kList;
}

bool GlobMatches(const std::string& glob, const std::string& name) {
  return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
}

const KnownDifference* FindKnownDifference(const std::string& name, const std::string& engine) {
  for (const KnownDifference& known : KnownDifferences()) {
    if (engine == known.engine && GlobMatches(known.case_glob, name)) {
      return &known;
    }
  }
  return nullptr;
}

}  // namespace shunt::conformance
