// SPDX-License-Identifier: Apache-2.0
#include "tests/conformance/known_differences.h"

#include <fnmatch.h>

namespace shunt::conformance {

const std::vector<KnownDifference>& KnownDifferences() {
  static const std::vector<KnownDifference> kList = {
      // Row 3, of programs that were found clean before they began to splice.
      {"splice.data_first.*", "sockhash", "splice() does not see bytes that were handed over", "3"},
      {"splice.call_first.*", "sockhash", "a sleeping splice() is not woken", "3"},
      {"splice.mixed_with_recv.*", "sockhash", "a splice() after recv() hangs", "3"},
      {"splice.edge.*", "sockhash", "splice() misses bytes and gets no further edge", "3"},
      {"splice.echo.*", "sockhash", "a proxy that uses splice() stands still", "3"},
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
      {"programs.go_io_copy/*", "sockhash", "io.Copy between connections stands still", "3"},
      // Row 11: until the pair has left, some milliseconds after the first FIONREAD;
      // and what is done so that nobody sleeps on those bytes.
      {"receive.fionread.*", "sockhash", "FIONREAD says 0 with TCP's bytes unread", "11"},
      {"receive.fionread_edge.*", "sockhash",
       "an edge-triggered reader that trusts FIONREAD is woken late", "11"},
      {"programs.java_available/*", "sockhash", "available() says 0 with bytes unread", "11"},
      {"poll.epoll_edge_added_late.*", "sockhash", "one edge too many", "11"},
      {"options.set_live/*", "sockhash", "SO_KEEPALIVE and TCP_KEEPIDLE read back as 1", "11"},
      {"receive.fionread_large.*", "sockhash", "FIONREAD says 0 with TCP's bytes unread", "11"},
      {"handshake.defer_accept_fionread/*", "sockhash", "FIONREAD says 0 with TCP's bytes unread",
       "11"},
      // Row 17.
      {"ending.shutdown_rd_blocked.*", "sockhash", "a blocked recv() fails with EAGAIN", "17"},
      {"ending.reset_blocked_recv.*", "sockhash", "a blocked recv() fails with EAGAIN", "17"},
      // Rows 17 and on: errors and odd calls.
      {"receive.interrupted.*", "sockhash",
       "a signal makes a blocked recv() fail with EAGAIN instead of EINTR or a restart", "17"},
      {"sharing.signals.*", "sockhash",
       "under a timer's signals (a profiler) a blocked recv() fails with EAGAIN", "17"},
      {"sharing.two_readers.*", "sockhash",
       "of two blocked readers one fails with EAGAIN when the other took the data", "17"},
      {"send.bad_address.*", "sockhash",
       "send() from memory that cannot be read returns 0 instead of EFAULT", "19"},
      {"send.control_refused.*", "sockhash",
       "sendmsg() ignores control messages: what TCP refuses with EINVAL is sent", "20"},
      {"receive.bad_address.*", "sockhash",
       "readv() into partly bad memory takes a part where TCP says EFAULT and takes nothing", "19"},
      {"receive.trunc.*", "sockhash", "MSG_TRUNC copies instead of throwing away", "21"},
      {"receive.peek_trunc.*", "sockhash", "MSG_TRUNC copies instead of throwing away", "21"},
      {"receive.empty.*", "sockhash",
       "recv() of no bytes returns 0 instead of EAGAIN, MSG_OOB EAGAIN instead of EINVAL", "22"},
      {"receive.tcp_inq.*", "sockhash", "recvmsg() brings no TCP_CM_INQ", "23"},
      {"options.so_timestamp.*", "sockhash", "recvmsg() brings no time of arrival", "23"},
      {"options.so_timestamping_tx.*", "sockhash", "no time stamps of what was sent", "23"},
      {"receive.peek_off.*", "sockhash", "SO_PEEK_OFF is ignored", "23"},
      {"receive.zerocopy.*", "sockhash", "TCP_ZEROCOPY_RECEIVE sees nothing to read", "23"},
      {"options.socket_filter_drops/*", "sockhash",
       "a socket filter does not see what was handed over", "23"},
      {"options.checkpoint.*", "sockhash",
       "a connection restored by TCP_REPAIR (CRIU) is dead: sequence numbers do not agree", "24"},
      {"ending.reset_blocked_send.*", "sockhash",
       "after a reset in a blocked send() the next recv() says EOF instead of ECONNRESET", "18"},
      {"uring.send_zc.*", "sockhash", "io_uring's zero-copy send fails with EOPNOTSUPP", "25"},
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
