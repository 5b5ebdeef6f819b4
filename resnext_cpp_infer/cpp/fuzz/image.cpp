// libFuzzer: any bytes as an image give pixels, as the program makes them, or a BadImage.
#include "image.h"

#include <cstdint>
#include <string>
#include <vector>

#include "exif.h"
#include "preprocess.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static resnext::PixelMaker maker;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  using Preprocess = resnext::Preprocess;
  for (const auto filter : {Preprocess::Filter::kAntialias, Preprocess::Filter::kBicubic, Preprocess::Filter::kPlain}) {
    try {
      resnext::Picture picture(data, size);
      if (picture.width() > 2000 || picture.height() > 2000) return 0;  // right, but slow
      Preprocess how;
      how.size = 8;
      how.resize = 9;
      how.filter = filter;
      how.mode = size % 2 == 0 ? Preprocess::Mode::kSquash : Preprocess::Mode::kShorterSide;
      how.scaled_decode = size % 3 == 0;
      std::vector<uint8_t> pixels(8 * 8 * 3);
      maker.evaluate(picture, how, resnext::orientation(bytes), pixels.data());
    } catch (const resnext::BadImage&) {
    }
  }
  return 0;
}
