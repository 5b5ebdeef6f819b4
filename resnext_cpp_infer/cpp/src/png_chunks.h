// The chunks of a PNG that make its pixels, as resnext_core/data/png.py has them: metadata is not looked at.
#pragma once

#include <string>

namespace resnext {

struct PngChunks {
  // A PNG of IHDR, PLTE of a palette image, one IDAT and IEND. Checksums are verified, that of IDAT is not written.
  std::string stream;
  // The largest number of significant bits of the colours, where the file says so (sBIT); else 0.
  int significant = 0;
  int width = 0, height = 0;
  int depth = 0;  // bits of a sample
};

// Takes the bytes of a file that begins with PNG's signature. Throws BadImage.
PngChunks png_chunks(const std::string& bytes);

}  // namespace resnext
