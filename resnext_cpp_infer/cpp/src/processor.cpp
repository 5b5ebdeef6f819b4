#include "processor.h"

#include <sys/utsname.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <vector>

namespace resnext {
namespace {

struct Instructions {
  const char* name;
  std::vector<std::string> needed;  // flags of Linux
};

// The most capable first, as in resnext_core/processor.py.
const std::vector<Instructions>& x86() {
  static const std::vector<Instructions> sets = {
      {"amx-int8", {"amx_int8", "amx_tile", "avx512_vnni"}}, {"avx512-vnni", {"avx512_vnni", "avx512f"}},
      {"avx-vnni", {"avx_vnni", "avx2"}},                    {"avx512", {"avx512f", "avx512bw"}},
      {"avx2", {"avx2", "fma"}}};
  return sets;
}

const std::vector<Instructions>& arm() {
  static const std::vector<Instructions> sets = {{"arm-i8mm", {"i8mm"}}, {"arm-dotprod", {"asimddp"}}};
  return sets;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::string stripped(const std::string& text) {
  constexpr const char* kBlanks = " \t\r";
  const size_t start = text.find_first_not_of(kBlanks);
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(kBlanks) + 1 - start);
}

// The words of the first line `key : ...`, lower or upper case alike.
std::set<std::string> field(const std::string& cpuinfo, const std::string& key) {
  std::istringstream lines(cpuinfo);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (lower(stripped(line.substr(0, colon))) != key) continue;
    std::istringstream words(colon == std::string::npos ? "" : line.substr(colon + 1));
    return {std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()};
  }
  return {};
}

}  // namespace

std::string instruction_set(const std::string& cpuinfo, std::string machine) {
  machine = lower(machine);
  const bool is_x86 = machine == "x86_64" || machine == "amd64", is_arm = machine == "aarch64" || machine == "arm64";
  if (!is_x86 && !is_arm) return machine.empty() ? "unknown" : machine;
  std::set<std::string> flags = field(cpuinfo, "flags");
  if (flags.empty()) flags = field(cpuinfo, "features");
  for (const Instructions& set : is_x86 ? x86() : arm())
    if (std::all_of(set.needed.begin(), set.needed.end(), [&](const auto& flag) { return flags.count(flag) > 0; }))
      return set.name;
  return is_x86 ? "x86-64" : "arm64";
}

std::string instruction_set() {
  std::ifstream stream("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  utsname system{};
  return instruction_set(text, uname(&system) == 0 ? system.machine : "");
}

bool saturates(const std::string& instructions) {
  return instructions == "avx512" || instructions == "avx2" || instructions == "x86-64";
}

}  // namespace resnext
