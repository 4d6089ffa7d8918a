# SPDX-License-Identifier: Apache-2.0
#[=[
shunt_library(<name> SOURCES <file>... [DEPS <target>...] [TESTS <file>_test.cc...])

One static library per folder, shunt_<name>, and one test program beside it,
<name>_test, from the _test.cc files that stand next to what they test.
]=]
function(shunt_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;TESTS" ${ARGN})
  add_library(shunt_${name} STATIC ${ARG_SOURCES})
  target_include_directories(shunt_${name} PUBLIC ${CMAKE_SOURCE_DIR})
  target_link_libraries(shunt_${name} PUBLIC ${ARG_DEPS})
  if(ARG_TESTS)
    add_executable(${name}_test ${ARG_TESTS})
    target_link_libraries(${name}_test PRIVATE shunt_${name} GTest::gmock_main)
    gtest_discover_tests(${name}_test PROPERTIES LABELS unit DISCOVERY_TIMEOUT 60)
  endif()
endfunction()
