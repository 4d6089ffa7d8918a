// SPDX-License-Identifier: Apache-2.0
//
// main() of the gtest programs that link this library.
#include "gtest/gtest.h"
#include "tests/support/environment.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // Discovery by CTest only lists.
  if (!testing::GTEST_FLAG(list_tests)) {
    shunt::test::EnterEnvironment();
  }
  const int result = RUN_ALL_TESTS();
  shunt::test::LeaveEnvironment();
  return result;
}
