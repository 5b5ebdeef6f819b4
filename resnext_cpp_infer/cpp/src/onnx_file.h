// What an ONNX file says of itself, read without ONNX.
#pragma once

#include <string>

namespace resnext {

struct OnnxFile {
  bool readable = false;   // it is a sequence of whole protobuf fields
  std::string manifest;    // the metadata entry `resnext`, empty without one
  std::string content;     // sha256:<hex> over all of its fields but the metadata, as they lie in the file
  bool converted = false;  // another tool has made constants of it that are no float32
};

// Error(kData) where the file cannot be read.
OnnxFile read_onnx(const std::string& path);

}  // namespace resnext
