#include "image.h"

#include <fcntl.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#include "jpeg.h"
#include "passes.h"
#include "png_chunks.h"

namespace resnext {
namespace {

// More pixels than this are refused before any of them is decoded (Pillow's bound).
constexpr int64_t kMaxPixels = 178956970;

// Larger files are refused: more than any image of kMaxPixels needs.
constexpr int64_t kMaxBytes = int64_t{1} << 31;

// -- PNG -----------------------------------------------------------------------------------------

struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  const std::string* bytes = nullptr;
  size_t at = 0;
  std::string message;
  ~PngReader() { png_destroy_read_struct(&png, info != nullptr ? &info : nullptr, nullptr); }
};

[[noreturn]] void png_on_error(png_structp png, png_const_charp message) {
  static_cast<PngReader*>(png_get_error_ptr(png))->message = message;
  png_longjmp(png, 1);
}

void png_on_warning(png_structp, png_const_charp) {}

void png_take(png_structp png, png_bytep target, size_t count) {
  auto* r = static_cast<PngReader*>(png_get_io_ptr(png));
  if (count > r->bytes->size() - r->at) png_error(png, "the file is truncated");
  std::memcpy(target, r->bytes->data() + r->at, count);
  r->at += count;
}

bool png_header(PngReader& r) {
  if (setjmp(png_jmpbuf(r.png)) != 0) return false;
  png_set_read_fn(r.png, &r, png_take);
  png_set_crc_action(r.png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);  // png_chunks has verified them
  png_read_info(r.png, r.info);
  return true;
}

// `wide` leaves 16 bits as they are.
bool png_convert(PngReader& r, bool wide) {
  if (setjmp(png_jmpbuf(r.png)) != 0) return false;
  const int type = png_get_color_type(r.png, r.info);
  if (!wide) png_set_strip_16(r.png);
  if (type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(r.png);
  if (type == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(r.png);
  if ((type & PNG_COLOR_MASK_COLOR) == 0) png_set_gray_to_rgb(r.png);
  png_set_strip_alpha(r.png);
  png_set_interlace_handling(r.png);
  png_read_update_info(r.png, r.info);
  return true;
}

// True where every row is there; what comes after the last one does not matter.
bool png_complete(const PngReader& r) {
  if (png_get_interlace_type(r.png, r.info) != PNG_INTERLACE_NONE) return png_get_current_pass_number(r.png) >= 7;
  return png_get_current_row_number(r.png) >= png_get_image_height(r.png, r.info);
}

bool png_rows(PngReader& r, png_bytepp pointers) {
  if (setjmp(png_jmpbuf(r.png)) != 0) return png_complete(r);
  png_read_image(r.png, pointers);
  return true;
}

// 16 bits to 8: the upper 8, or those of the `bits` that the file says are used, where no value is larger and they are
// not stored scaled up already (resnext_core/data/decode.py).
void narrow(const std::vector<uint8_t>& wide, int bits, std::vector<uint8_t>& target) {
  const auto value = [&](size_t i) { return static_cast<unsigned>(wide[2 * i]) << 8 | wide[2 * i + 1]; };
  unsigned most = 0, any = 0;
  for (size_t i = 0; i < target.size(); ++i) {
    most = std::max(most, value(i));
    any |= value(i);
  }
  const int up = 16 - bits;
  const bool unscaled = most < 1U << bits && (any & ((1U << up) - 1)) != 0;
  for (size_t i = 0; i < target.size(); ++i)
    target[i] = static_cast<uint8_t>((unscaled ? value(i) << up : value(i)) >> 8);
}

Image decode_png(const PngChunks& chunks) {
  const auto r = std::make_unique<PngReader>();
  r->bytes = &chunks.stream;
  r->png = png_create_read_struct(PNG_LIBPNG_VER_STRING, r.get(), png_on_error, png_on_warning);
  r->info = r->png == nullptr ? nullptr : png_create_info_struct(r->png);
  if (r->info == nullptr) throw std::bad_alloc();
  png_set_user_limits(r->png, 0x7fffffff, 0x7fffffff);
  if (!png_header(*r)) throw BadImage(r->message);
  const bool wide = png_get_bit_depth(r->png, r->info) == 16 && chunks.significant > 0 && chunks.significant < 16;
  if (!png_convert(*r, wide)) throw BadImage(r->message);
  Image image;
  image.width = static_cast<int>(png_get_image_width(r->png, r->info));
  image.height = static_cast<int>(png_get_image_height(r->png, r->info));
  const size_t samples = static_cast<size_t>(image.width) * 3, stride = wide ? samples * 2 : samples;
  const auto height = static_cast<size_t>(image.height);
  if (png_get_rowbytes(r->png, r->info) != stride) throw BadImage("a PNG of an unknown kind");
  image.pixels.resize(samples * height);
  std::vector<uint8_t> pairs(wide ? stride * height : 0);
  std::vector<png_bytep> pointers(height);
  for (size_t y = 0; y < height; ++y) pointers[y] = (wide ? pairs.data() : image.pixels.data()) + y * stride;
  if (!png_rows(*r, pointers.data())) throw BadImage(r->message);
  if (wide) narrow(pairs, chunks.significant, image.pixels);
  return image;
}

// -- files ---------------------------------------------------------------------------------------

// What a file is in place of a regular one.
const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

[[noreturn]] void fail_errno() { throw BadImage(std::strerror(errno != 0 ? errno : EIO)); }

void check_regular(const struct stat& status) {
  if (!S_ISREG(status.st_mode)) throw BadImage(std::string(kind_of(status.st_mode)) + ", not a regular file");
}

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

[[noreturn]] void too_large(int64_t size) {
  throw BadImage("the file has " + std::to_string(size) + " bytes; the limit for JPEG and PNG is " +
                 std::to_string(kMaxBytes));
}

bool starts(std::string_view bytes, const char* with, size_t length) {
  return bytes.compare(0, length, with, length) == 0;
}

// The format that Python reads and this program does not; nullptr of anything else.
const char* other_format(std::string_view bytes) {
  if (starts(bytes, "GIF8", 4)) return "GIF";
  if (starts(bytes, "BM", 2)) return "BMP";
  if (starts(bytes, "II*\0", 4) || starts(bytes, "MM\0*", 4)) return "TIFF";
  if (starts(bytes, "RIFF", 4) && bytes.compare(8, 4, "WEBP") == 0) return "WebP";
  return nullptr;
}

}  // namespace

void check_size(int64_t width, int64_t height) {
  if (width * height > kMaxPixels)
    throw BadImage(std::to_string(width) + " x " + std::to_string(height) + " is more than " +
                   std::to_string(kMaxPixels) + " pixels");
}

Picture::Picture(const uint8_t* data, size_t size) {
  if (size == 0) throw BadImage("the file is empty");
  if (size > static_cast<size_t>(kMaxBytes)) too_large(static_cast<int64_t>(size));
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (starts(bytes, "\xFF\xD8\xFF", 3)) {
    jpeg_ = std::make_unique<Jpeg>(data, size);
    width_ = jpeg_->width();
    height_ = jpeg_->height();
    return;
  }
  if (starts(bytes, "\x89PNG\r\n\x1A\n", 8)) {
    png_ = std::make_unique<PngChunks>(png_chunks(std::string(bytes)));
    width_ = png_->width;
    height_ = png_->height;
    return;
  }
  const std::string pointer = "version https://git-lfs.github.com/spec/";
  if (starts(bytes, pointer.data(), pointer.size()))
    throw BadImage("a Git LFS pointer, not an image; run git lfs pull");
  const char* other = bytes.size() > 12 ? other_format(bytes) : nullptr;
  if (other != nullptr) throw BadImage(std::string(other) + ": only JPEG and PNG are supported");
  throw BadImage("neither JPEG nor PNG; other formats are not supported");
}

Picture::~Picture() = default;

int Picture::bits() const { return png_ == nullptr ? 8 : png_->depth; }

int Picture::reduction(int width, int height) const {
  return jpeg_ == nullptr ? 1 : jpeg_reduction(width_, height_, width, height);
}

void Picture::decode(int by, const Region& region, std::vector<uint8_t>& rows, RowSink& sink) {
  if (jpeg_ != nullptr) {
    jpeg_->decode(by, region, rows, sink);
    return;
  }
  hand_over(decode_png(*png_), region, rows, sink);
}

void hand_over(const Image& image, const Region& region, std::vector<uint8_t>& rows, RowSink& sink) {
  constexpr int kBlock = 16;
  const auto width = static_cast<size_t>(region.width), stride = width * 4;
  const size_t needed = stride * static_cast<size_t>(std::min(kBlock, region.height)) + kSlack;
  if (rows.size() < needed) rows.resize(needed);
  for (int done = 0; done < region.height; done += kBlock) {
    const int count = std::min(kBlock, region.height - done);
    uint8_t* to = rows.data();
    for (int y = region.top + done; y < region.top + done + count; ++y) {
      const uint8_t* from = &image.pixels[(static_cast<size_t>(y) * static_cast<size_t>(image.width) +
                                           static_cast<size_t>(region.left)) * 3];
      for (size_t x = 0; x < width; ++x, to += 4, from += 3) std::memcpy(to, from, 3);
    }
    sink.take(rows.data(), stride, count);
  }
}

std::string read_picture(const std::string& path) {
  struct stat status {};
  errno = 0;
  if (stat(path.c_str(), &status) != 0) fail_errno();
  check_regular(status);  // before it is opened: a device may do something then
  const Descriptor file{open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  if (file.number < 0 || fstat(file.number, &status) != 0) fail_errno();
  check_regular(status);  // it may have been replaced since
  if (status.st_size > kMaxBytes)
    too_large(status.st_size);
  std::string bytes(static_cast<size_t>(status.st_size), '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t count = read(file.number, &bytes[have], bytes.size() - have);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno();
    if (count == 0) break;  // it has become shorter
    have += static_cast<size_t>(count);
  }
  bytes.resize(have);
  return bytes;
}

}  // namespace resnext
