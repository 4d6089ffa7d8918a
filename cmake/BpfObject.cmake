# SPDX-License-Identifier: Apache-2.0
#[=[
bpf_object(<name> <source.bpf.c> [GENERATION <n>] [HEADERS <header>...])

Compiles a BPF program with clang and turns it into a libbpf skeleton. Yields
the interface library <name>_skel; linking it makes "<name>.skel.h" includable
and libbpf available. With GENERATION it is compiled with -DSHUNT_GENERATION=<n>,
and the target is <name>_next_skel. Needs clang with a BPF target and bpftool.
]=]
find_program(BPF_CLANG NAMES clang-16 clang-17 clang-18 clang-19 clang-15 clang-14 clang)
find_program(BPFTOOL NAMES bpftool PATHS /usr/sbin)
if(NOT BPF_CLANG OR NOT BPFTOOL)
  message(FATAL_ERROR "BPF objects need clang and bpftool: run scripts/build, which installs them")
endif()

# As <bpf/bpf_tracing.h> names it.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|amd64")
  set(BPF_ARCH x86)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(BPF_ARCH arm64)
else()
  message(FATAL_ERROR "${CMAKE_SYSTEM_PROCESSOR}: Shunt runs on x86_64 and aarch64")
endif()

function(bpf_object name source)
  cmake_parse_arguments(ARG "" "GENERATION" "HEADERS" ${ARGN})
  set(directory ${CMAKE_CURRENT_BINARY_DIR})
  set(target ${name})
  set(definitions)
  if(ARG_GENERATION)
    set(directory ${CMAKE_CURRENT_BINARY_DIR}/next)
    set(target ${name}_next)
    set(definitions -DSHUNT_GENERATION=${ARG_GENERATION})
    file(MAKE_DIRECTORY ${directory})
  endif()
  set(object ${directory}/${name}.bpf.o)
  set(skeleton ${directory}/${name}.skel.h)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${BPF_CLANG} -g -O2 -target bpf -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror
            -D__TARGET_ARCH_${BPF_ARCH} ${definitions} -I${CMAKE_SOURCE_DIR} -I/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}
            -ffile-prefix-map=${CMAKE_SOURCE_DIR}=.
            -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${source} ${ARG_HEADERS}
    COMMENT "BPF ${source}")
  add_custom_command(
    OUTPUT ${skeleton}
    COMMAND ${BPFTOOL} gen skeleton ${object} name ${name} > ${skeleton}
    COMMAND sed -i "1i // NOLINTBEGIN" ${skeleton}
    COMMAND echo "// NOLINTEND" >> ${skeleton}
    DEPENDS ${object}
    COMMENT "BPF skeleton ${name}.skel.h")
  add_custom_target(${target}_skel_files DEPENDS ${skeleton})
  add_library(${target}_skel INTERFACE)
  add_dependencies(${target}_skel ${target}_skel_files)
  target_include_directories(${target}_skel SYSTEM INTERFACE ${directory})
  target_link_libraries(${target}_skel INTERFACE PkgConfig::LIBBPF)
endfunction()
