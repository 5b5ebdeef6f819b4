// Result files: written as <path>.partial, renamed when they are whole.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "error.h"

namespace resnext {

[[noreturn]] inline void cannot_write(const std::string& path) {
  throw Error(kData,
              "cannot write " + path + ": " + std::strerror(errno) + "; what was written is in " + path + ".partial");
}

inline std::FILE* open_partial(const std::string& path) {
  std::FILE* file = std::fopen((path + ".partial").c_str(), "wb");
  if (file == nullptr) throw Error(kData, "cannot write " + path + ": " + std::strerror(errno));
  return file;
}

inline void write_all(std::FILE* file, const std::string& path, const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, file) != bytes) cannot_write(path);
}

inline void finish_partial(std::FILE* file, const std::string& path) {
  const bool flushed = std::fflush(file) == 0;
  const bool closed = std::fclose(file) == 0;
  if (!flushed || !closed || std::rename((path + ".partial").c_str(), path.c_str()) != 0) cannot_write(path);
}

}  // namespace resnext
