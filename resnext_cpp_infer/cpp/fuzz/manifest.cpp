// libFuzzer: any bytes as a manifest give a manifest or an Error.
#include "manifest.h"

#include <cstdint>
#include <string>

#include "error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    resnext::Manifest::parse(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
  } catch (const resnext::Error&) {
  }
  return 0;
}
