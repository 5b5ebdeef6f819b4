// Prints the word of resnext::instruction_set for a cpuinfo text on standard input and a machine, and whether it
// saturates; without arguments those of this processor.
#include <cstdio>
#include <iostream>
#include <iterator>

#include "processor.h"

int main(int count, char** words) {
  const std::string text =
      count > 1 ? std::string{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()} : "";
  const std::string found = count > 1 ? resnext::instruction_set(text, words[1]) : resnext::instruction_set();
  std::printf("%s %d\n", found.c_str(), resnext::saturates(found) ? 1 : 0);
}
