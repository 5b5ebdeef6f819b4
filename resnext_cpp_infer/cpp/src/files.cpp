#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "error.h"
#include "json.h"
#include "stop.h"

namespace resnext {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxLinks = 40;
constexpr size_t kLongestName = 240;  // with .partial below the 255 that file systems take

[[noreturn]] void cannot(const std::string& path, int error) {
  check_stop(("before " + path + " could be written").c_str());
  throw Error(kData, "cannot write " + path + ": " + std::strerror(error));
}

bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }

// What is to be written where `path` is asked for: the end of its links. `straight`: it is to be written into.
std::string resolved(const std::string& path, bool& straight, struct stat& old, bool& there) {
  fs::path target = path;
  straight = there = false;
  for (int links = 0;; ++links) {
    struct stat status {};
    if (lstat(target.c_str(), &status) != 0) {
      if (errno != ENOENT) cannot(path, errno);
      return target.string();
    }
    if (!S_ISLNK(status.st_mode)) break;
    if (links == kMaxLinks) cannot(path, ELOOP);
    std::error_code error;
    const fs::path next = fs::read_symlink(target, error);
    if (error) cannot(path, error.value());
    target = next.is_absolute() ? next : target.parent_path() / next;
    if (begins(target.string(), "/proc/")) {  // /dev/stdout and its like: a file that is open already
      straight = there = true;
      return target.string();
    }
  }
  there = stat(target.c_str(), &old) == 0;
  if (!there) cannot(path, errno);
  if (S_ISDIR(old.st_mode)) cannot(path, EISDIR);
  straight = !S_ISREG(old.st_mode) || begins(target.string(), "/proc/");
  return target.string();
}

}  // namespace

OutputFile::OutputFile(const std::string& path, bool durable) : path_(path), durable_(durable) {
  bool straight = false, there = false;
  struct stat old {};
  check_stop("before anything was written");
  target_ = resolved(path, straight, old, there);
  if (!straight) {
    const fs::path target = target_;
    partial_ = (target.parent_path() / (target.filename().string().substr(0, kLongestName) + ".partial")).string();
  }
  const int flags = straight ? O_WRONLY | O_APPEND | O_NOCTTY : O_WRONLY | O_CREAT | O_TRUNC;
  const int file = open(straight ? target_.c_str() : partial_.c_str(), flags | O_CLOEXEC, 0666);
  if (file < 0) cannot(path, errno);
  struct stat made {};
  if (there && !straight && fstat(file, &made) == 0 && S_ISREG(made.st_mode)) {
    if ((made.st_uid != old.st_uid || made.st_gid != old.st_gid) && fchown(file, old.st_uid, old.st_gid) != 0)
      errno = 0;  // only the superuser may
    if (fchmod(file, old.st_mode & 0777) != 0) {
      const int error = errno;
      close(file);
      cannot(path, error);
    }
  }
  file_ = fdopen(file, "wb");
  if (file_ == nullptr) {
    const int error = errno;
    close(file);
    cannot(path, error);
  }
}

OutputFile::~OutputFile() {
  if (file_ != nullptr) std::fclose(file_);
}

void OutputFile::fail() const {
  const int error = errno;
  throw Error(kData, "cannot write " + path_ + ": " + std::strerror(error) +
                         (partial_.empty() ? "" : "; the output so far is in " + partial_));
}

void OutputFile::write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file_) != bytes) fail();
}

void OutputFile::finish() {
  if (std::fflush(file_) != 0) fail();
  // A device in its place, as /dev/full is in tests, cannot be synchronised.
  if (!partial_.empty() && durable_ && fsync(fileno(file_)) != 0 && errno != EINVAL && errno != ENOTSUP) fail();
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0) fail();
  if (!partial_.empty() && std::rename(partial_.c_str(), target_.c_str()) != 0) fail();
}

std::string output_identity(const std::string& path) {
  bool straight = false, there = false;
  struct stat old {};
  const std::string target = resolved(path, straight, old, there);
  if (straight) return "";
  if (there) return std::to_string(old.st_dev) + ":" + std::to_string(old.st_ino);
  std::error_code none;
  const fs::path whole = fs::weakly_canonical(target, none);
  return none ? target : whole.string();
}

void refuse_address(const std::string& text) {
  const size_t end = text.find("://");
  if (end == std::string::npos || end == 0 || std::isalpha(static_cast<unsigned char>(text[0])) == 0) return;
  for (size_t i = 0; i < end; ++i)
    if (std::isalnum(static_cast<unsigned char>(text[i])) == 0 && std::strchr("+.-", text[i]) == nullptr) return;
  std::error_code none;
  if (fs::exists(fs::symlink_status(text, none))) return;
  throw Error(kUsage, "'" + text + "' is a URL, not a file; download it first and give its path");
}

void guard_standard_files() {
  for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(file, F_GETFD) >= 0 || errno != EBADF) continue;
    if (open("/dev/null", file == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0) return;
  }
}

void finish_standard_output() {
  errno = 0;
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw Error(kData, std::string("cannot write standard output: ") + std::strerror(errno != 0 ? errno : EIO));
}

std::string printable(const std::string& text) {
  std::string out;
  char escape[8];
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const size_t length = utf8_length(text, i);
    const bool c1 = length == 2 && byte == 0xC2 && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (length == 0 || c1 || byte < 0x20 || byte == 0x7F) {
      std::snprintf(escape, sizeof escape, "\\x%02x", c1 ? static_cast<unsigned char>(text[i + 1]) : byte);
      out += escape;
      i += c1 ? 2 : 1;
    } else {
      out.append(text, i, length);
      i += length;
    }
  }
  return out;
}

}  // namespace resnext
