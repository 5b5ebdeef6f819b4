#include "lite_log.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <vector>

namespace resnext {
namespace {

constexpr size_t kMostReasons = 3;
// Said of every exception, before the one that says what happened.
constexpr const char* kEmpty = "Runtime error for null exception handler";

// The message of "[ERROR] ME(pid,thread,program):time [file:line] Function] message", empty in other lines. Of warnings
// only those tell why something failed that name a library which cannot be loaded.
std::string message(const std::string& line) {
  const bool error = line.rfind("[ERROR]", 0) == 0;
  if (!error && (line.rfind("[WARNING]", 0) != 0 || line.find("] dlopen ") == std::string::npos)) return "";
  const size_t file = line.find(" [", line.find(')')), function = line.find("] ", file);
  const size_t end = function == std::string::npos ? function : line.find("] ", function + 2);
  return end == std::string::npos ? "" : line.substr(end + 2);
}

}  // namespace

std::string errors_in(const std::string& log) {
  std::vector<std::string> reasons;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const std::string text = message(line);
    const bool known = std::find(reasons.begin(), reasons.end(), text) != reasons.end();
    if (!text.empty() && !known && text.rfind(kEmpty, 0) != 0) reasons.push_back(text);
  }
  std::string text;
  for (size_t i = 0; i < std::min(reasons.size(), kMostReasons); ++i) text += (i == 0 ? "" : " | ") + reasons[i];
  return text;
}

HeldBackLog::HeldBackLog() {
  if (std::getenv("GLOG_v") != nullptr) return;
  std::fflush(stderr);
  log_ = memfd_create("lite-log", MFD_CLOEXEC);
  saved_ = log_ < 0 ? -1 : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
  if (saved_ >= 0) dup2(log_, STDERR_FILENO);
}

HeldBackLog::~HeldBackLog() {
  if (saved_ >= 0) {
    std::fflush(stderr);
    dup2(saved_, STDERR_FILENO);
    close(saved_);
  }
  if (log_ >= 0) close(log_);
}

std::string HeldBackLog::errors() const {
  std::fflush(stderr);
  std::string text;
  char block[4096];
  for (off_t at = 0; log_ >= 0;) {
    const ssize_t n = pread(log_, block, sizeof block, at);
    if (n <= 0) break;
    text.append(block, static_cast<size_t>(n));
    at += n;
  }
  return errors_in(text);
}

}  // namespace resnext
