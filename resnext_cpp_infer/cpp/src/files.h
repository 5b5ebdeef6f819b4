// Files that the program is told to write: whole or not there.
#pragma once

#include <cstdio>
#include <string>

namespace resnext {

// A file being written, as <path>.partial until it is whole. A symbolic link is followed and stays; a file that is
// replaced keeps its mode and, where the system allows, its owner. What exists and is no regular file (a device, a
// named pipe, an open file as /dev/stdout) is written into and never replaced.
class OutputFile {
 public:
  // Error(kData) where it cannot be written. With `durable` it is on the disk before it gets its name.
  explicit OutputFile(const std::string& path, bool durable = true);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t bytes);
  // Flushes, and renames to the final name.
  void finish();

 private:
  [[noreturn]] void fail() const;

  std::string path_, target_, partial_;  // partial_ is empty where target_ is written into
  bool durable_;
  std::FILE* file_ = nullptr;
};

// Two paths with the same identity are one file, whether it is there yet or not; empty for what is written into.
std::string output_identity(const std::string& path);

// Error(kUsage) where the value of `flag` is an address like https://..., which is no path.
void refuse_address(const std::string& text);

// Closed standard files are opened so that using them fails, and no other file gets their numbers.
void guard_standard_files();

// Error(kData) where something of standard output could not be written.
void finish_standard_output();

// `text` on one line of a terminal: control characters and bytes that are no UTF-8 as \xNN.
std::string printable(const std::string& text);

}  // namespace resnext
