#include "image.h"

#include <fcntl.h>
#include <jpeglib.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <memory>

#include "exif.h"
#include "png_chunks.h"

namespace resnext {
namespace {

// More pixels than this are refused before any of them is decoded (Pillow's bound).
constexpr int64_t kMaxPixels = 178956970;

// Larger files are refused: more than any image of kMaxPixels needs.
constexpr int64_t kMaxBytes = int64_t{1} << 31;

// -- JPEG ----------------------------------------------------------------------------------------

// libjpeg reports an error by a call that must not return. Only what is in here is alive across the jump.
struct JpegReader {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  std::jmp_buf jump{};
  char message[JMSG_LENGTH_MAX] = "";
  bool cut_short = false;
  bool finishing = false;  // every row is there
};

JpegReader* reader(j_common_ptr info) { return static_cast<JpegReader*>(info->client_data); }

[[noreturn]] void on_error(j_common_ptr info) {
  (*info->err->format_message)(info, reader(info)->message);
  std::longjmp(reader(info)->jump, 1);
}

void no_output(j_common_ptr) {}

// The whole file is in memory: who asks for more has come to its end too early, or looks for the end marker in vain.
boolean no_more(j_decompress_ptr info) {
  JpegReader* r = reader(reinterpret_cast<j_common_ptr>(info));
  if (r->finishing) return FALSE;
  r->cut_short = true;
  std::longjmp(r->jump, 1);
}

void skip(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  if (static_cast<size_t>(count) > info->src->bytes_in_buffer) {
    no_more(info);
    count = static_cast<long>(info->src->bytes_in_buffer);
  }
  info->src->next_input_byte += count;
  info->src->bytes_in_buffer -= static_cast<size_t>(count);
}

void nothing(j_decompress_ptr) {}

// Reads the header; the output type and its scale are set.
bool start(JpegReader& r, const std::string& bytes) {
  r.info.err = jpeg_std_error(&r.errors);
  r.errors.error_exit = on_error;
  r.errors.output_message = no_output;
  r.info.client_data = &r;
  if (setjmp(r.jump) != 0) return false;
  jpeg_create_decompress(&r.info);
  r.source.next_input_byte = reinterpret_cast<const JOCTET*>(bytes.data());
  r.source.bytes_in_buffer = bytes.size();
  r.source.init_source = nothing;
  r.source.fill_input_buffer = no_more;
  r.source.skip_input_data = skip;
  r.source.resync_to_restart = jpeg_resync_to_restart;
  r.source.term_source = nothing;
  r.info.src = &r.source;
  jpeg_read_header(&r.info, TRUE);
  return true;
}

bool begin(JpegReader& r) {
  if (setjmp(r.jump) != 0) return false;
  jpeg_start_decompress(&r.info);
  return true;
}

// Reads all rows of `stride` bytes into `target`.
bool rows(JpegReader& r, uint8_t* target, size_t stride) {
  if (setjmp(r.jump) != 0) return false;
  while (r.info.output_scanline < r.info.output_height) {
    JSAMPROW row = target + stride * r.info.output_scanline;
    jpeg_read_scanlines(&r.info, &row, 1);
  }
  r.finishing = true;
  jpeg_finish_decompress(&r.info);  // what is wrong up to the end marker counts, as in Python; a missing one does not
  return true;
}

struct JpegGuard {
  JpegReader r;
  ~JpegGuard() { jpeg_destroy_decompress(&r.info); }
};

[[noreturn]] void fail(const JpegReader& r) {
  throw BadImage(r.cut_short ? "the file is truncated" : r.message[0] != '\0' ? r.message : "broken JPEG");
}

// The largest of 1, 2, 4, 8 by which both sides may be divided and stay at least `minimum`.
unsigned reduction(unsigned width, unsigned height, int minimum) {
  unsigned by = 1;
  while (minimum > 0 && by < 8 && std::min(width, height) / (2 * by) >= static_cast<unsigned>(minimum)) by *= 2;
  return by;
}

// Inks of Adobe's inverted CMYK to RGB in Pillow's integers.
void from_cmyk(const std::vector<uint8_t>& inks, std::vector<uint8_t>& rgb) {
  for (size_t i = 0, o = 0; i + 3 < inks.size(); i += 4, o += 3) {
    const int white = inks[i + 3];  // 255 - k, and k is stored inverted
    for (size_t c = 0; c < 3; ++c) {
      const int product = (255 - inks[i + c]) * white + 128;
      rgb[o + c] = static_cast<uint8_t>(std::max(white - ((product + (product >> 8)) >> 8), 0));
    }
  }
}

Image decode_jpeg(const std::string& bytes, int minimum) {
  const auto guard = std::make_unique<JpegGuard>();
  JpegReader& r = guard->r;
  if (!start(r, bytes)) fail(r);
  check_size(r.info.image_width, r.info.image_height);
  const int parts = r.info.num_components;
  if (parts != 1 && parts != 3 && parts != 4) throw BadImage("a JPEG of " + std::to_string(parts) + " components");
  r.info.out_color_space = parts == 1 ? JCS_GRAYSCALE : parts == 3 ? JCS_RGB : JCS_CMYK;
  r.info.scale_num = 1;
  r.info.scale_denom = reduction(r.info.image_width, r.info.image_height, minimum);
  if (!begin(r)) fail(r);
  Image image;
  image.width = static_cast<int>(r.info.output_width);
  image.height = static_cast<int>(r.info.output_height);
  const size_t area = static_cast<size_t>(image.width) * static_cast<size_t>(image.height);
  image.pixels.resize(area * 3);
  if (parts == 3) {
    if (!rows(r, image.pixels.data(), static_cast<size_t>(image.width) * 3)) fail(r);
    return image;
  }
  std::vector<uint8_t> raw(area * static_cast<size_t>(parts));
  if (!rows(r, raw.data(), static_cast<size_t>(image.width) * static_cast<size_t>(parts))) fail(r);
  if (parts == 4) {
    from_cmyk(raw, image.pixels);
  } else {
    for (size_t i = 0; i < area; ++i) std::memset(&image.pixels[3 * i], raw[i], 3);
  }
  return image;
}

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

Image decode_png(const std::string& bytes) {
  const PngChunks chunks = png_chunks(bytes);
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

bool starts(const std::string& bytes, const char* with, size_t length) {
  return bytes.compare(0, length, with, length) == 0;
}

// The format that Python reads and this program does not; nullptr of anything else.
const char* other_format(const std::string& bytes) {
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

Image decode(const std::string& bytes, int minimum, bool oriented) {
  if (bytes.empty()) throw BadImage("the file is empty");
  const int stored = oriented ? orientation(bytes) : 1;
  if (starts(bytes, "\xFF\xD8\xFF", 3)) return turned(decode_jpeg(bytes, minimum), stored);
  if (starts(bytes, "\x89PNG\r\n\x1A\n", 8)) return turned(decode_png(bytes), stored);
  const std::string pointer = "version https://git-lfs.github.com/spec/";
  if (bytes.compare(0, pointer.size(), pointer) == 0)
    throw BadImage("a Git LFS pointer, not an image; run git lfs pull");
  const char* other = bytes.size() > 12 ? other_format(bytes) : nullptr;
  if (other != nullptr) throw BadImage(std::string(other) + ": only JPEG and PNG are supported");
  throw BadImage("neither JPEG nor PNG; other formats are not supported");
}

Image decode_file(const std::string& path, int minimum, bool oriented) {
  struct stat status {};
  errno = 0;
  if (stat(path.c_str(), &status) != 0) fail_errno();
  check_regular(status);  // before it is opened: a device may do something then
  const Descriptor file{open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  if (file.number < 0 || fstat(file.number, &status) != 0) fail_errno();
  check_regular(status);  // it may have been replaced since
  if (status.st_size > kMaxBytes)
    throw BadImage("the file has " + std::to_string(status.st_size) + " bytes; the limit for JPEG and PNG is " +
                   std::to_string(kMaxBytes));
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
  return decode(bytes, minimum, oriented);
}

}  // namespace resnext
