// SPDX-License-Identifier: Apache-2.0
#include "agent/observe/expected_gain.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt {
namespace {

using testing::HasSubstr;

TEST(ExpectedGain, IsUnknownWhileNothingHasBeenSeen) {
  const ExpectedGain gain = GainOf(PodObservation());
  EXPECT_EQ(gain.ratio, "unknown");
  EXPECT_THAT(gain.basis, HasSubstr("no connection"));
}

TEST(ExpectedGain, IsNoneIfEverythingStaysOnTcp) {
  PodObservation observation;
  observation.would_stay[SHUNT_EXIT_SERVER_ALONE] = 3;
  EXPECT_EQ(GainOf(observation).ratio, "none");
}

TEST(ExpectedGain, NamesTheSizeToMeasureInsteadOfAFigure) {
  PodObservation observation;
  observation.would_accelerate = 1;
  EXPECT_THAT(GainOf(observation).basis, HasSubstr("no receive"));
  observation.receives = 4;
  observation.received_bytes = 4096;
  EXPECT_EQ(GainOf(observation).ratio, "unknown");
  EXPECT_THAT(GainOf(observation).basis, HasSubstr("1024 bytes on average"));
}

}  // namespace
}  // namespace shunt
