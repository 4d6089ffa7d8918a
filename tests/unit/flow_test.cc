// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <cstring>

#include <gtest/gtest.h>

extern "C" {
#include "bpf/flow.h"
}

namespace shunt {
namespace {

constexpr uint64_t kNetns = 0x1122334455667788;
constexpr uint32_t kClientNext = 0xfffffff0, kServerNext = 0x10;

// As the maps compare keys.
bool IsSame(const shunt_end_key& a, const shunt_end_key& b) {
  return memcmp(&a, &b, sizeof(a)) == 0;
}

shunt_end_key ClientKey() {
  return shunt_end_key_make(kNetns, SHUNT_CLIENT, /*snd_nxt=*/kClientNext,
                            /*rcv_nxt=*/kServerNext);
}

shunt_end_key ServerKey() {
  return shunt_end_key_make(kNetns, SHUNT_SERVER, /*snd_nxt=*/kServerNext,
                            /*rcv_nxt=*/kClientNext);
}

TEST(EndKey, EachEndDerivesTheOthersName) {
  EXPECT_TRUE(IsSame(shunt_end_key_peer(ClientKey()), ServerKey()));
  EXPECT_TRUE(IsSame(shunt_end_key_peer(ServerKey()), ClientKey()));
}

TEST(EndKey, NamesWhatItIsMadeOf) {
  const shunt_end_key key = ServerKey();
  EXPECT_EQ(key.netns_cookie, kNetns);
  EXPECT_EQ(key.client_next, kClientNext);
  EXPECT_EQ(key.server_next, kServerNext);
  EXPECT_EQ(key.role, uint32_t{SHUNT_SERVER});
  EXPECT_EQ(key.zero, 0u);
}

TEST(EndKey, PeerOfPeerIsSelf) {
  EXPECT_TRUE(IsSame(shunt_end_key_peer(shunt_end_key_peer(ClientKey())), ClientKey()));
  EXPECT_FALSE(IsSame(shunt_end_key_peer(ClientKey()), ClientKey()));
}

// Both ends in one map, also if the two sequence numbers happen to be equal.
TEST(EndKey, EndsDifferEvenIfSequencesAreEqual) {
  const shunt_end_key client = shunt_end_key_make(kNetns, SHUNT_CLIENT, 5, 5);
  const shunt_end_key server = shunt_end_key_make(kNetns, SHUNT_SERVER, 5, 5);
  EXPECT_FALSE(IsSame(client, server));
  EXPECT_TRUE(IsSame(shunt_end_key_peer(client), server));
}

// With Fast Open the server has 100 bytes more than the client had sent at its
// own ESTABLISHED, or has already answered.
TEST(EndKey, FastOpenNeverMeets) {
  EXPECT_FALSE(IsSame(shunt_end_key_make(kNetns, SHUNT_SERVER, kServerNext, kClientNext + 100),
                      shunt_end_key_peer(ClientKey())));
  EXPECT_FALSE(IsSame(shunt_end_key_make(kNetns, SHUNT_SERVER, kServerNext + 100, kClientNext),
                      shunt_end_key_peer(ClientKey())));
}

TEST(EndKey, NetworkNamespacesNeverMeet) {
  EXPECT_FALSE(IsSame(shunt_end_key_make(kNetns + 1, SHUNT_SERVER, kServerNext, kClientNext),
                      shunt_end_key_peer(ClientKey())));
}

shunt_policy Policy(uint32_t range_count) {
  shunt_policy policy = {};
  policy.mode = SHUNT_MODE_ENROL;
  policy.range_count = range_count;
  return policy;
}

TEST(Policy, RangesIncludeTheirBounds) {
  shunt_policy policy = Policy(2);
  policy.ranges[0] = {8080, 8080};
  policy.ranges[1] = {30000, 60000};
  struct {
    uint32_t port;
    bool listed;
  } const cases[] = {
      {0, false},     {8079, false},         {8080, true},  {8081, false},  {29999, false},
      {30000, true},  {45000, true},         {60000, true}, {60001, false}, {65535, false},
      {65536, false}, {8080 + 65536, false},  // not cut down to 16 bits
  };
  for (const auto& test : cases) {
    EXPECT_EQ(shunt_policy_lists(&policy, test.port) != 0, test.listed) << test.port;
  }
}

TEST(Policy, AllPortsAndTheLastPort) {
  shunt_policy policy = Policy(1);
  policy.ranges[0] = {0, 65535};
  EXPECT_TRUE(shunt_policy_lists(&policy, 0));
  EXPECT_TRUE(shunt_policy_lists(&policy, 65535));
  policy.ranges[0] = {65535, 65535};
  EXPECT_FALSE(shunt_policy_lists(&policy, 65534));
  EXPECT_TRUE(shunt_policy_lists(&policy, 65535));
}

TEST(Policy, InvertedRangeListsNothing) {
  shunt_policy policy = Policy(1);
  policy.ranges[0] = {9000, 8000};
  for (uint32_t port : {7999, 8000, 8500, 9000, 9001}) {
    EXPECT_FALSE(shunt_policy_lists(&policy, port)) << port;
  }
}

TEST(Policy, ZeroedStorageListsNothing) {
  const shunt_policy policy = {};
  EXPECT_FALSE(shunt_policy_lists(&policy, 0));
  EXPECT_FALSE(shunt_policy_lists(&policy, 8080));
}

TEST(Policy, AnyModeButEnrolListsNothing) {
  shunt_policy policy = Policy(1);
  policy.ranges[0] = {0, 65535};
  EXPECT_TRUE(shunt_policy_lists(&policy, 8080));
  for (uint32_t mode : {uint32_t{SHUNT_MODE_OFF}, 2u, UINT32_MAX}) {
    policy.mode = mode;
    EXPECT_FALSE(shunt_policy_lists(&policy, 8080)) << mode;
  }
}

TEST(Policy, RangesBeyondTheCountDoNotCount) {
  shunt_policy policy = Policy(1);
  policy.ranges[0] = {1, 1};
  policy.ranges[1] = {8080, 8080};
  EXPECT_FALSE(shunt_policy_lists(&policy, 8080));
  EXPECT_FALSE(shunt_policy_lists(&policy, 0)) << "unused ranges are zero";
  policy.range_count = 0;
  EXPECT_FALSE(shunt_policy_lists(&policy, 1));
}

TEST(Policy, HoldsItsFullNumberOfRanges) {
  shunt_policy policy = Policy(SHUNT_MAX_PORT_RANGES);
  for (uint16_t i = 0; i < SHUNT_MAX_PORT_RANGES; ++i) {
    policy.ranges[i].first = policy.ranges[i].last = static_cast<__u16>(1000 + 10 * i);
  }
  for (uint32_t i = 0; i < SHUNT_MAX_PORT_RANGES; ++i) {
    EXPECT_TRUE(shunt_policy_lists(&policy, 1000 + 10 * i)) << i;
    EXPECT_FALSE(shunt_policy_lists(&policy, 1000 + 10 * i + 1)) << i;
  }
}

// A count that no agent would write must not lead beyond the array. What
// follows would list the port, if it were read as ranges.
TEST(Policy, CountIsClamped) {
  struct {
    shunt_policy policy;
    shunt_port_range after[4];
  } memory = {};
  memory.policy = Policy(UINT32_MAX);
  for (shunt_port_range& range : memory.policy.ranges) range = {1, 1};
  for (shunt_port_range& range : memory.after) range = {0, 65535};
  EXPECT_FALSE(shunt_policy_lists(&memory.policy, 8080));
  EXPECT_TRUE(shunt_policy_lists(&memory.policy, 1));
  memory.policy.range_count = SHUNT_MAX_PORT_RANGES + 1;
  EXPECT_FALSE(shunt_policy_lists(&memory.policy, 8080));
}

}  // namespace
}  // namespace shunt
