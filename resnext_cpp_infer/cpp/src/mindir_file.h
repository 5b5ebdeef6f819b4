// What a MINDIR file says of itself, read without MindSpore.
#pragma once

#include <cstdint>
#include <string>

namespace resnext {

struct MindirFile {
  uint64_t ir_version = 0;  // enum Version of mind_ir.proto: 1 of MindSpore up to 2.0, 3 of 2.10
  std::string writer;       // the version of the MindSpore that wrote it, e.g. 2.10.0
};

// Error(kData), beginning with the path, where the file cannot be read or is no whole MINDIR.
MindirFile read_mindir(const std::string& path);

}  // namespace resnext
