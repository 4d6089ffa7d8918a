// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "ctl/command.h"

int main(int argc, char** argv) { return shunt::ctl::Run(argc, argv, std::cout, std::cerr); }
