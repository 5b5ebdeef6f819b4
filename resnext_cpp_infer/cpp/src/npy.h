// NumPy's .npy files, version 1.0, written row by row.
#pragma once

#include <string>
#include <vector>

#include "files.h"

namespace resnext {

class NpyWriter {
 public:
  // Begins the file with so many rows of `shape`; `type` is "<f4" or "|u1". Error(kData) where it cannot.
  NpyWriter(const std::string& path, const char* type, size_t rows, const std::vector<size_t>& shape);

  void write(const void* data, size_t bytes);
  // Flushes and renames to the final name.
  void finish();

 private:
  OutputFile file_;
};

}  // namespace resnext
