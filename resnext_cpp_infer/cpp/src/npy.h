// NumPy's .npy files, version 1.0, written row by row.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace resnext {

class NpyWriter {
 public:
  // Begins <path>.partial with so many rows of `shape`; `type` is "<f4" or "|u1". Error(kData) where it cannot.
  NpyWriter(const std::string& path, const char* type, size_t rows, const std::vector<size_t>& shape);
  ~NpyWriter();
  NpyWriter(const NpyWriter&) = delete;
  NpyWriter& operator=(const NpyWriter&) = delete;

  void write(const void* data, size_t bytes);
  // Flushes and renames to the final name.
  void finish();

 private:
  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace resnext
