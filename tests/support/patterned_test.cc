// SPDX-License-Identifier: Apache-2.0
#include "tests/support/patterned.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shunt::test {
namespace {

using testing::HasSubstr;

TEST(PatternTest, PiecesMakeTheWhole) {
  const Pattern pattern(7);
  const std::string whole = pattern.At(0, 1000);
  std::string pieces;
  for (size_t size = 1; pieces.size() < whole.size(); size++) {
    pieces += pattern.At(pieces.size(), std::min(size, whole.size() - pieces.size()));
  }
  EXPECT_EQ(pieces, whole);
  EXPECT_FALSE(pattern.Difference(13, std::string_view(whole).substr(13)));
}

TEST(PatternTest, SaysWhatHappenedToTheStream) {
  const Pattern pattern(7);
  EXPECT_THAT(pattern.Difference(100, pattern.At(90, 20)).value(),
              testing::AllOf(HasSubstr("byte 100"), HasSubstr("10 bytes earlier")));
  EXPECT_THAT(pattern.Difference(100, pattern.At(100, 5) + pattern.At(4200, 20)).value(),
              testing::AllOf(HasSubstr("byte 105"), HasSubstr("4095 bytes later")));
  EXPECT_THAT(pattern.Difference(100, Pattern(8).At(100, 20)).value(),
              HasSubstr("not of this stream"));
}

TEST(RandomTest, SizesStayInBounds) {
  Random random(1);
  size_t largest = 0;
  for (int i = 0; i < 10000; i++) {
    const size_t size = random.Size(3000);
    ASSERT_GE(size, 1u);
    largest = std::max(largest, size);
  }
  EXPECT_EQ(largest, 3000u);
}

}  // namespace
}  // namespace shunt::test
