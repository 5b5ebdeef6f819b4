// The C interface of the pixel library: nothing that C++ throws leaves it.
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "exif.h"
#include "image.h"
#include "jpeg_library.h"
#include "operations.h"
#include "preprocess.h"
#include "resnext_pixels.h"
#include "simd.h"

using resnext::WrongArgument;

struct resnext_pixels {
  std::optional<resnext::Picture> picture;
  resnext::PixelMaker maker;
  resnext::Operator operate;
  std::string message;
};

namespace {

constexpr int kMostSide = 8192;

void check(bool right, const char* what) {
  if (!right) throw WrongArgument(what);
}

resnext::Preprocess::Filter filter_of(int32_t filter) {
  check(filter >= RESNEXT_PIXELS_ANTIALIAS && filter <= RESNEXT_PIXELS_PLAIN, "no such filter");
  if (filter == RESNEXT_PIXELS_BICUBIC) return resnext::Preprocess::Filter::kBicubic;
  return filter == RESNEXT_PIXELS_PLAIN ? resnext::Preprocess::Filter::kPlain : resnext::Preprocess::Filter::kAntialias;
}

// What `work` throws becomes what a call returns. The image is forgotten unless `keeps` and all is well.
template <typename Work>
int guarded(resnext_pixels* pixels, bool keeps, const Work& work) {
  int code = RESNEXT_PIXELS_OK;
  try {
    pixels->message.clear();
    work();
  } catch (const resnext::BadImage& error) {
    code = RESNEXT_PIXELS_UNREAD;
    pixels->message = error.what();
  } catch (const WrongArgument& error) {
    code = RESNEXT_PIXELS_WRONG;
    pixels->message = error.what();
  } catch (const std::bad_alloc&) {
    code = RESNEXT_PIXELS_NO_MEMORY;
  } catch (const std::length_error&) {
    code = RESNEXT_PIXELS_NO_MEMORY;
  }
  if (code != RESNEXT_PIXELS_OK || !keeps) pixels->picture.reset();
  return code;
}

void check_orientation(int32_t orientation) { check(orientation >= 1 && orientation <= 8, "no such orientation"); }

void check_opened(const resnext_pixels* pixels) { check(pixels->picture.has_value(), "no image is opened"); }

}  // namespace

int resnext_pixels_abi(void) { return RESNEXT_PIXELS_ABI; }

const char* resnext_pixels_use_jpeg(const char* path) {
  static thread_local std::string why;
  why = resnext::use_jpeg_library(path);
  return why.empty() ? nullptr : why.c_str();
}

void resnext_pixels_use_simd(int most) { resnext::simd_allowed = most; }

resnext_pixels* resnext_pixels_new(void) { return new (std::nothrow) resnext_pixels(); }

void resnext_pixels_free(resnext_pixels* pixels) { delete pixels; }

int resnext_pixels_open(resnext_pixels* pixels, const uint8_t* data, size_t size, resnext_pixels_header* header) {
  return guarded(pixels, true, [&] {
    pixels->picture.reset();
    const resnext::Picture& picture = pixels->picture.emplace(data, size);
    *header = {picture.width(), picture.height(), picture.jpeg() ? RESNEXT_PIXELS_JPEG : RESNEXT_PIXELS_PNG, picture.bits(),
               picture.jpeg() ? 1 | 2 | 4 | 8 : 1};
  });
}

int resnext_pixels_evaluate(resnext_pixels* pixels, const resnext_pixels_evaluation* how, uint8_t* out) {
  return guarded(pixels, false, [&] {
    check_opened(pixels);
    check(how->size >= 1 && how->size <= how->resize && how->resize <= kMostSide, "no such size");
    check(how->mode == RESNEXT_PIXELS_SHORTER_SIDE || how->mode == RESNEXT_PIXELS_SQUASH, "no such mode");
    resnext::Preprocess spec;
    spec.size = how->size;
    spec.resize = how->resize;
    spec.mode = how->mode == RESNEXT_PIXELS_SQUASH ? resnext::Preprocess::Mode::kSquash
                                                   : resnext::Preprocess::Mode::kShorterSide;
    spec.filter = filter_of(how->filter);
    spec.scaled_decode = how->scaled_decode != 0;
    check_orientation(how->orientation);
    pixels->maker.evaluate(*pixels->picture, spec, how->orientation, out);
  });
}

int resnext_pixels_train(resnext_pixels* pixels, const resnext_pixels_plan* plan, uint8_t* out) {
  return guarded(pixels, false, [&] {
    check_opened(pixels);
    check_orientation(plan->orientation);
    int width = pixels->picture->width(), height = pixels->picture->height();
    if (resnext::turns_sides(plan->orientation)) std::swap(width, height);
    check(plan->size >= 1 && plan->size <= kMostSide, "no such size");
    // Also false for what is no number.
    check(plan->left >= 0 && plan->top >= 0 && plan->width > 0 && plan->height > 0 &&
              plan->left + plan->width <= width && plan->top + plan->height <= height,
          "a box that is not in the image");
    check(plan->least_width >= 0 && plan->least_height >= 0, "sides below 0");
    check(plan->operation_count >= 0, "a number of operations below 0");
    resnext::check_operations(plan->operations, plan->operation_count);
    resnext::PixelMaker::Crop crop;
    crop.left = plan->left;
    crop.top = plan->top;
    crop.width = plan->width;
    crop.height = plan->height;
    crop.least_width = plan->least_width;
    crop.least_height = plan->least_height;
    crop.size = plan->size;
    crop.filter = filter_of(plan->filter);
    crop.flip = plan->flip != 0;
    crop.orientation = plan->orientation;
    pixels->maker.crop(*pixels->picture, crop, out);
    pixels->operate.operate(plan->operations, plan->operation_count, plan->size, out);
  });
}

void resnext_pixels_close(resnext_pixels* pixels) { pixels->picture.reset(); }

int resnext_pixels_operate(resnext_pixels* pixels, const resnext_pixels_operation* operations, int32_t count, int32_t size,
                           uint8_t* image) {
  return guarded(pixels, false, [&] {
    check(count >= 0 && size >= 1 && size <= kMostSide, "no such size");
    resnext::check_operations(operations, count);
    pixels->operate.operate(operations, count, size, image);
  });
}

const char* resnext_pixels_message(const resnext_pixels* pixels) { return pixels->message.c_str(); }
