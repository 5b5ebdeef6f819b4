// What the program ends with when it cannot do what it was asked.
#pragma once

#include <stdexcept>
#include <string>

namespace resnext {

// The exit codes of resnext-run, see docs/contract.md.
enum Exit { kDone = 0, kUsage = 2, kData = 3, kEngine = 4, kInterrupted = 75 };

// One line for the user, and an exit code.
class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message) : std::runtime_error(message), code(code) {}
  const Exit code;
};

}  // namespace resnext
