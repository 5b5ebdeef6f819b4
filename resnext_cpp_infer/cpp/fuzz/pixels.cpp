// libFuzzer: a plan and any bytes as an image, through the C interface, give pixels or an error; and the pixels of a part
// of an image are those of the image decoded as a whole.
#include "resnext_pixels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "image.h"
#include "preprocess.h"

namespace {

// Takes numbers from the front of the data, 0 after its end.
struct Numbers {
  const uint8_t* data;
  size_t size;

  uint8_t byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
  int below(int bound) { return byte() % bound; }
  double fraction() { return (byte() * 256 + byte()) / 65536.0; }
  double value() {
    switch (below(6)) {
      case 0: return below(10) - 1;
      case 1: return fraction() * 2;
      case 2: return byte();
      case 3: return (fraction() - 0.5) * 200;
      case 4: return (fraction() - 0.5) * 1e13;
      default: {
        double any;
        uint8_t bytes[sizeof any];
        for (uint8_t& b : bytes) b = byte();
        std::memcpy(&any, bytes, sizeof any);
        return any;
      }
    }
  }
};

// Lets every row of a picture through, so that a whole decode can be compared.
struct Whole : resnext::RowSink {
  explicit Whole(resnext::Resize& resize, const resnext::Region& region) : resize(resize), region(region) {}
  void take(const uint8_t* rows, size_t stride, int count) override {
    for (int i = 0; i < count; ++i, ++y) {
      if (y < region.top || y >= region.top + region.height) continue;
      row.assign(static_cast<size_t>(region.width) * 4 + 64, 0);
      std::memcpy(row.data(), rows + static_cast<size_t>(i) * stride + static_cast<size_t>(region.left) * 4,
                  static_cast<size_t>(region.width) * 4);
      resize.take(row.data(), row.size(), 1);
    }
  }
  resnext::Resize& resize;
  const resnext::Region region;
  std::vector<uint8_t> row;
  int y = 0;
};

// 8 x 8 pixels of a plan's box by a whole decode: false where there are none.
bool by_whole(const uint8_t* data, size_t size, const resnext_pixels_plan& plan, uint8_t* out) {
  try {
    resnext::Picture picture(data, size);
    const int by = picture.reduction(plan.least_width, plan.least_height);
    const int width = (picture.width() + by - 1) / by, height = (picture.height() + by - 1) / by;
    const auto first = [by](double from, int side) { return std::min(static_cast<int>(from / by), side - 1); };
    const auto last = [by](double end, int from, int side) {
      return std::min(std::max(from + 1, static_cast<int>(std::nearbyint(end / by))), side);
    };
    const int left = first(plan.left, width), top = first(plan.top, height);
    const int right = last(plan.left + plan.width, left, width), bottom = last(plan.top + plan.height, top, height);
    resnext::Resize resize;
    resize.plain({left, top, right - left, bottom - top}, 8, 8, {0, 0, 8, 8});
    resize.begin(out);
    Whole sink(resize, resize.needs());
    std::vector<uint8_t> rows;
    picture.decode(by, {0, 0, width, height}, rows, sink);
    return true;
  } catch (const resnext::BadImage&) {
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static resnext_pixels* pixels = resnext_pixels_new();
  Numbers numbers{data, size < 200 ? size : 200};
  std::vector<resnext_pixels_operation> operations(static_cast<size_t>(numbers.below(4)));
  for (resnext_pixels_operation& operation : operations) {
    constexpr int kCounts[] = {0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 10, 0, 1, 1, 7, 11, 3};
    operation.kind = numbers.below(18);
    operation.count = kCounts[operation.kind];
    for (double& value : operation.values) value = numbers.value();
  }
  resnext_pixels_plan plan{};
  const double across[2] = {numbers.fraction(), numbers.fraction()}, down[2] = {numbers.fraction(), numbers.fraction()};
  plan.least_width = numbers.byte();
  plan.least_height = numbers.byte();
  plan.size = 1 + numbers.below(40);
  plan.filter = numbers.below(3);
  plan.flip = numbers.below(2);
  plan.orientation = 1 + numbers.below(8);
  plan.operation_count = static_cast<int32_t>(operations.size());
  plan.operations = operations.data();
  const uint8_t* const image = numbers.data;
  const size_t image_size = size - static_cast<size_t>(image - data);
  resnext_pixels_header header;
  if (resnext_pixels_open(pixels, image, image_size, &header) != RESNEXT_PIXELS_OK) return 0;
  if (header.width > 2000 || header.height > 2000) return 0;  // right, but slow
  const auto part = [](const double* shares, int side, double& from, double& length) {
    from = static_cast<int>(shares[0] * side);
    length = 1 + static_cast<int>(shares[1] * (side - from));
    if (from + length > side) length = side - from;
  };
  const bool sideways = plan.orientation >= 5;
  part(across, sideways ? header.height : header.width, plan.left, plan.width);
  part(down, sideways ? header.width : header.height, plan.top, plan.height);
  std::vector<uint8_t> out(static_cast<size_t>(plan.size) * static_cast<size_t>(plan.size) * 3);
  resnext_pixels_train(pixels, &plan, out.data());

  if (sideways) {
    std::swap(plan.left, plan.top);
    std::swap(plan.width, plan.height);
  }
  plan.size = 8;
  plan.filter = RESNEXT_PIXELS_PLAIN;
  plan.flip = plan.operation_count = 0;
  plan.orientation = 1;
  uint8_t ours[8 * 8 * 3], theirs[8 * 8 * 3];
  if (resnext_pixels_open(pixels, image, image_size, &header) != RESNEXT_PIXELS_OK) std::abort();
  const bool made = resnext_pixels_train(pixels, &plan, ours) == RESNEXT_PIXELS_OK;
  if (made != by_whole(image, image_size, plan, theirs)) std::abort();
  if (made && std::memcmp(ours, theirs, sizeof ours) != 0) std::abort();
  return 0;
}
