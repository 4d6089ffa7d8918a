// SPDX-License-Identifier: Apache-2.0
#include "agent/probe/row.h"

#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace shunt {

Finding Failed(const absl::Status& status) {
  return {Found::kFailed, std::string(status.message())};
}

std::string Errno(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : absl::StrCat("errno ", error);
}

std::string Outcome(ssize_t result) {
  return result < 0 ? Errno(static_cast<int>(-result)) : absl::StrCat(result, " bytes");
}

std::string Pattern(size_t size) {
  std::string data(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    data[i] = static_cast<char>((i * 131) ^ (i >> 8));
  }
  return data;
}

std::vector<std::string> WordsOf(const char* path) {
  std::ifstream file(path);
  return {std::istream_iterator<std::string>(file), std::istream_iterator<std::string>()};
}

}  // namespace shunt
