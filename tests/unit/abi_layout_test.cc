// SPDX-License-Identifier: Apache-2.0
// What is pinned outlives who wrote it. A failure here means a new
// SHUNT_ABI_VERSION, unless it only appended an exit.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

extern "C" {
#include "kmod/uapi/shunt.h"
}

namespace shunt {
namespace {

static_assert(SHUNT_ABI_VERSION == 2);
static_assert(SHUNT_MAX_PORT_RANGES == 32);
static_assert(SHUNT_CLIENT == 0 && SHUNT_SERVER == 1);
static_assert(SHUNT_MODE_OFF == 0 && SHUNT_MODE_ENROL == 1);
static_assert(SHUNT_EVENT_PAIR_MADE == 0 && SHUNT_EVENT_LEFT == 1 && SHUNT_EVENT_REFUSED == 2 &&
              SHUNT_EVENT_LEAVING == 3 && SHUNT_EVENT_WORKLOAD == 4);

static_assert(sizeof(shunt_end_key) == 24 && alignof(shunt_end_key) == 8);
static_assert(offsetof(shunt_end_key, netns_cookie) == 0);
static_assert(offsetof(shunt_end_key, client_next) == 8);
static_assert(offsetof(shunt_end_key, server_next) == 12);
static_assert(offsetof(shunt_end_key, role) == 16);
static_assert(offsetof(shunt_end_key, zero) == 20);

static_assert(sizeof(shunt_end) == 48 && alignof(shunt_end) == 8);
static_assert(offsetof(shunt_end, tcp_sock) == 0);
static_assert(offsetof(shunt_end, socket_cookie) == 8);
static_assert(offsetof(shunt_end, joined_ns) == 16);
static_assert(offsetof(shunt_end, pod) == 24);
static_assert(offsetof(shunt_end, uid) == 28);
static_assert(offsetof(shunt_end, local_port) == 32);
static_assert(offsetof(shunt_end, remote_port) == 34);
static_assert(offsetof(shunt_end, family) == 36);
static_assert(offsetof(shunt_end, gate_closed) == 38);
static_assert(offsetof(shunt_end, turn) == 40);
static_assert(offsetof(shunt_end, leaving) == 44);

static_assert(sizeof(shunt_port_range) == 4 && alignof(shunt_port_range) == 2);
static_assert(offsetof(shunt_port_range, first) == 0);
static_assert(offsetof(shunt_port_range, last) == 2);

static_assert(sizeof(shunt_policy) == 144 && alignof(shunt_policy) == 4);
static_assert(offsetof(shunt_policy, pod) == 0);
static_assert(offsetof(shunt_policy, mode) == 4);
static_assert(offsetof(shunt_policy, range_count) == 8);
static_assert(offsetof(shunt_policy, zero) == 12);
static_assert(offsetof(shunt_policy, ranges) == 16);

// /dev/shunt: what ioctl numbers carry is their size, so a change is ENOTTY.
static_assert(SHUNT_KMOD_ABI_VERSION == 1);
static_assert(SHUNT_OWNER_RELEASE == 0 && SHUNT_OWNER_KEEP == 1);

static_assert(sizeof(shunt_kmod_end) == 48 && alignof(shunt_kmod_end) == 8);
static_assert(offsetof(shunt_kmod_end, local_address) == 0);
static_assert(offsetof(shunt_kmod_end, remote_address) == 16);
static_assert(offsetof(shunt_kmod_end, local_port) == 32);
static_assert(offsetof(shunt_kmod_end, remote_port) == 34);
static_assert(offsetof(shunt_kmod_end, family) == 36);
static_assert(offsetof(shunt_kmod_end, zero) == 38);
static_assert(offsetof(shunt_kmod_end, socket_cookie) == 40);

static_assert(sizeof(shunt_kmod_pair) == 120 && alignof(shunt_kmod_pair) == 8);
static_assert(offsetof(shunt_kmod_pair, abi_version) == 0);
static_assert(offsetof(shunt_kmod_pair, flags) == 4);
static_assert(offsetof(shunt_kmod_pair, netns_cookie) == 8);
static_assert(offsetof(shunt_kmod_pair, client) == 16);
static_assert(offsetof(shunt_kmod_pair, server) == 64);
static_assert(offsetof(shunt_kmod_pair, pair_id) == 112);

static_assert(sizeof(shunt_kmod_record) == 56 && alignof(shunt_kmod_record) == 8);
static_assert(offsetof(shunt_kmod_record, pair_id) == 0);
static_assert(offsetof(shunt_kmod_record, netns_cookie) == 8);
static_assert(offsetof(shunt_kmod_record, client_cookie) == 16);
static_assert(offsetof(shunt_kmod_record, server_cookie) == 24);
static_assert(offsetof(shunt_kmod_record, client_sent_bytes) == 32);
static_assert(offsetof(shunt_kmod_record, server_sent_bytes) == 40);
static_assert(offsetof(shunt_kmod_record, kept) == 48);
static_assert(offsetof(shunt_kmod_record, zero) == 52);

static_assert(sizeof(shunt_kmod_list) == 24 && sizeof(shunt_kmod_counters) == 16);
static_assert(offsetof(shunt_kmod_list, cursor) == 0);
static_assert(offsetof(shunt_kmod_list, records) == 8);
static_assert(offsetof(shunt_kmod_list, count) == 16);
static_assert(offsetof(shunt_kmod_counters, values) == 0);
static_assert(offsetof(shunt_kmod_counters, count) == 8);

// An older agent reads a prefix of the counters: the first and the last so far.
static_assert(SHUNT_KMOD_EXIT_PAIRED == 0 && SHUNT_KMOD_EXIT_SENT == 15);
static_assert(SHUNT_KMOD_EXIT_RESTARTED == 30 && SHUNT_KMOD_EXIT_COUNT == 31);

static_assert(sizeof(shunt_pod_totals) == 32 && alignof(shunt_pod_totals) == 8);
static_assert(offsetof(shunt_pod_totals, pairs_made) == 0);
static_assert(offsetof(shunt_pod_totals, pairs_ended) == 8);
static_assert(offsetof(shunt_pod_totals, redirected_bytes) == 16);
static_assert(offsetof(shunt_pod_totals, refused) == 24);

static_assert(sizeof(shunt_event) == 56 && alignof(shunt_event) == 8);
static_assert(offsetof(shunt_event, kind) == 0);
static_assert(offsetof(shunt_event, reason) == 4);
static_assert(offsetof(shunt_event, key) == 8);
static_assert(offsetof(shunt_event, redirected_bytes) == 32);
static_assert(offsetof(shunt_event, pod) == 40);
static_assert(offsetof(shunt_event, local_port) == 44);
static_assert(offsetof(shunt_event, remote_port) == 46);
static_assert(offsetof(shunt_event, hazards) == 48);
static_assert(offsetof(shunt_event, port) == 52);

static_assert(sizeof(shunt_workload_key) == 8 && alignof(shunt_workload_key) == 4);
static_assert(offsetof(shunt_workload_key, pod) == 0);
static_assert(offsetof(shunt_workload_key, port) == 4);
static_assert(SHUNT_WORKLOAD_WATCHED == 0 && SHUNT_WORKLOAD_CLEAN == 1 &&
              SHUNT_WORKLOAD_HAZARD == 2);

static_assert(sizeof(shunt_workload) == 48 && alignof(shunt_workload) == 4);
static_assert(offsetof(shunt_workload, state) == 0);
static_assert(offsetof(shunt_workload, hazards) == 4);
static_assert(offsetof(shunt_workload, receives) == 8);
static_assert(offsetof(shunt_workload, comm) == 16);

static_assert(sizeof(shunt_end_record) == 88 && alignof(shunt_end_record) == 8);
static_assert(offsetof(shunt_end_record, key) == 0);
static_assert(offsetof(shunt_end_record, end) == 24);
static_assert(offsetof(shunt_end_record, redirected_bytes) == 72);
static_assert(offsetof(shunt_end_record, unread_bytes) == 80);
static_assert(offsetof(shunt_end_record, state) == 84);
static_assert(offsetof(shunt_end_record, zero) == 86);

static_assert(sizeof(shunt_meta) == 16 && alignof(shunt_meta) == 4);
static_assert(offsetof(shunt_meta, abi_version) == 0);
static_assert(offsetof(shunt_meta, next_pod) == 4);
static_assert(offsetof(shunt_meta, watching) == 8);

// Every bit of every struct belongs to a field: no padding that the compiler
// would fill with what happens to be there.
static_assert(std::has_unique_object_representations_v<shunt_end_key>);
static_assert(std::has_unique_object_representations_v<shunt_end>);
static_assert(std::has_unique_object_representations_v<shunt_policy>);
static_assert(std::has_unique_object_representations_v<shunt_pod_totals>);
static_assert(std::has_unique_object_representations_v<shunt_event>);
static_assert(std::has_unique_object_representations_v<shunt_end_record>);
static_assert(std::has_unique_object_representations_v<shunt_meta>);
static_assert(std::has_unique_object_representations_v<shunt_workload_key>);
static_assert(std::has_unique_object_representations_v<shunt_workload>);

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the images below are little-endian");

template <typename Struct>
std::string Image(const Struct& value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  unsigned char bytes[sizeof(value)];
  memcpy(bytes, &value, sizeof(value));
  std::string hex;
  for (size_t i = 0; i < sizeof(bytes); ++i) {
    if (i != 0 && i % 8 == 0) hex += ' ';
    hex += kDigits[bytes[i] >> 4];
    hex += kDigits[bytes[i] & 15];
  }
  return hex;
}

shunt_end_key FilledKey() {
  shunt_end_key key = {};
  key.netns_cookie = 0x0807060504030201;
  key.client_next = 0x0c0b0a09;
  key.server_next = 0x100f0e0d;
  key.role = SHUNT_SERVER;
  return key;
}

shunt_end FilledEnd() {
  shunt_end end = {};
  end.tcp_sock = 0xffff888812345678;
  end.socket_cookie = 0x2827262524232221;
  end.joined_ns = 0x3837363534333231;
  end.pod = 0x44434241;
  end.uid = 1337;
  end.local_port = 8080;
  end.remote_port = 0x5251;
  end.family = 10;
  end.gate_closed = 1;
  end.turn = 0x64636261;
  end.leaving = 1;
  return end;
}

constexpr char kKeyImage[] = "0102030405060708 090a0b0c0d0e0f10 0100000000000000";
constexpr char kEndImage[] =
    "785634128888ffff 2122232425262728 3132333435363738 4142434439050000 901f51520a000100 "
    "6162636401000000";

TEST(AbiImage, EndKey) { EXPECT_EQ(Image(FilledKey()), kKeyImage); }

TEST(AbiImage, End) { EXPECT_EQ(Image(FilledEnd()), kEndImage); }

TEST(AbiImage, Policy) {
  shunt_policy policy = {};
  policy.pod = 0x04030201;
  policy.mode = SHUNT_MODE_ENROL;
  policy.range_count = 2;
  policy.ranges[0] = {0x1211, 0x1413};
  policy.ranges[1] = {0x2221, 0x2423};
  std::string expected = "0102030401000000 0200000000000000 1112131421222324";
  for (int i = 0; i < 15; ++i) expected += " 0000000000000000";
  EXPECT_EQ(Image(policy), expected);
}

TEST(AbiImage, PodTotals) {
  shunt_pod_totals totals = {};
  totals.pairs_made = 1;
  totals.pairs_ended = 2;
  totals.redirected_bytes = 0x0807060504030201;
  totals.refused = 4;
  EXPECT_EQ(Image(totals), "0100000000000000 0200000000000000 0102030405060708 0400000000000000");
}

TEST(AbiImage, Event) {
  shunt_event event = {};
  event.kind = SHUNT_EVENT_REFUSED;
  event.reason = SHUNT_EXIT_REFUSED_FAST_OPEN;
  event.key = FilledKey();
  event.redirected_bytes = 0x1817161514131211;
  event.pod = 0x24232221;
  event.local_port = 0x3231;
  event.remote_port = 0x3433;
  event.hazards = 0x44434241;
  event.port = 0x54535251;
  EXPECT_EQ(Image(event), std::string("0200000008000000 ") + kKeyImage +
                              " 1112131415161718 2122232431323334 4142434451525354");
}

TEST(AbiImage, EndRecord) {
  shunt_end_record record = {};
  record.key = FilledKey();
  record.end = FilledEnd();
  record.redirected_bytes = 0x1817161514131211;
  record.unread_bytes = 0x24232221;
  record.state = 8;
  EXPECT_EQ(Image(record),
            std::string(kKeyImage) + " " + kEndImage + " 1112131415161718 2122232408000000");
}

TEST(AbiImage, Meta) {
  shunt_meta meta = {};
  meta.abi_version = 0x04030201;
  meta.next_pod = 0x08070605;
  meta.watching = 1;
  EXPECT_EQ(Image(meta), "0102030405060708 0100000000000000");
}

// Counters are found by number in pinned maps: a number keeps its meaning.
TEST(Exits, KeepTheirNumbers) {
  EXPECT_EQ(SHUNT_EXIT_ANNOUNCED, 0);
  EXPECT_EQ(SHUNT_EXIT_CLIENT_JOINED, 2);
  EXPECT_EQ(SHUNT_EXIT_PAIR_MADE, 4);
  EXPECT_EQ(SHUNT_EXIT_ORPHAN_RELEASED, 7);
  EXPECT_EQ(SHUNT_EXIT_REFUSED_FAST_OPEN, 8);
  EXPECT_EQ(SHUNT_EXIT_REFUSED_HAZARD, 14);
  EXPECT_EQ(SHUNT_EXIT_REFUSED_ERROR, 16);
  EXPECT_EQ(SHUNT_EXIT_LEFT_CLOSED, 17);
  EXPECT_EQ(SHUNT_EXIT_LEAVING_STREAM, 21);
  EXPECT_EQ(SHUNT_EXIT_LEAVING_HAZARD, 24);
  EXPECT_EQ(SHUNT_EXIT_WORKLOAD_NEW, 25);
  EXPECT_EQ(SHUNT_EXIT_REDIRECTED, 29);
  EXPECT_EQ(SHUNT_EXIT_MSG_REDIRECT_FAILED, 43);
  EXPECT_EQ(SHUNT_EXIT_LEFT_DRAINED, 44);
  EXPECT_EQ(SHUNT_EXIT_EVENT_LOST, 47);
}

struct ExitText {
  std::string reason;
  std::string meaning;
};

std::vector<ExitText> ExitTexts() {
  return {
#define SHUNT_EXIT_TEXT(name, reason, text) {reason, text},
      SHUNT_EXITS(SHUNT_EXIT_TEXT)
#undef SHUNT_EXIT_TEXT
  };
}

TEST(Exits, EachHasAReasonOfItsOwnAndAMeaning) {
  const std::vector<ExitText> texts = ExitTexts();
  ASSERT_EQ(texts.size(), size_t{SHUNT_EXIT_COUNT});
  std::set<std::string> reasons, meanings;
  for (const ExitText& text : texts) {
    EXPECT_FALSE(text.reason.empty());
    EXPECT_FALSE(text.meaning.empty()) << text.reason;
    EXPECT_TRUE(reasons.insert(text.reason).second) << text.reason << " is used twice";
    EXPECT_TRUE(meanings.insert(text.meaning).second) << text.reason << " means nothing new";
  }
}

// Reasons are metric label values and words of a JSON schema.
TEST(Exits, ReasonsAreLowerCaseWords) {
  for (const ExitText& text : ExitTexts()) {
    EXPECT_EQ(text.reason.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), std::string::npos)
        << text.reason;
  }
}

}  // namespace
}  // namespace shunt
