// libFuzzer: any bytes as an image give pixels, resized in every way, or a BadImage.
#include "image.h"

#include <cstdint>
#include <string>
#include <vector>

#include "preprocess.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    const resnext::Image image = resnext::decode(bytes, 0, true);
    if (image.width > 2000 || image.height > 2000) return 0;  // right, but slow
    resnext::Preprocess how;
    how.size = 8;
    how.resize = 9;
    std::vector<uint8_t> pixels(8 * 8 * 3);
    using Filter = resnext::Preprocess::Filter;
    for (const auto filter : {Filter::kAntialias, Filter::kBicubic, Filter::kPlain}) {
      how.filter = filter;
      how.mode = size % 2 == 0 ? resnext::Preprocess::Mode::kSquash : resnext::Preprocess::Mode::kShorterSide;
      resnext::eval_pixels(image, how, pixels.data());
    }
  } catch (const resnext::BadImage&) {
  }
  return 0;
}
