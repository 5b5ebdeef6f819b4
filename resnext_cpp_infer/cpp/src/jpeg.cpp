#include "jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstring>

#include "image.h"
#include "jpeg_library.h"
#include "passes.h"

namespace resnext {

// libjpeg reports an error by a call that must not return. Only what is in here is alive across the jump.
struct JpegReader {
  const JpegLibrary& library = jpeg_library();
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  std::jmp_buf jump{};
  char message[JMSG_LENGTH_MAX] = "";
  bool created = false;
  bool cut_short = false;
  bool finishing = false;  // every row is there
  ~JpegReader() {
    if (created) library.destroy(&info);
  }
};

namespace {

// Rows that are read before they are handed on.
constexpr int kBlock = 16;
// Pixels beside a region that upsampling may look at, with room to spare.
constexpr int kMargin = 4;

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

// Reads the header.
bool start(JpegReader& r, const uint8_t* data, size_t size) {
  r.info.err = r.library.std_error(&r.errors);
  r.errors.error_exit = on_error;
  r.errors.output_message = no_output;
  r.info.client_data = &r;
  if (setjmp(r.jump) != 0) return false;
  // A new one for each file: one that is used again keeps the tables of the file before.
  r.created = true;
  r.library.create(&r.info, JPEG_LIB_VERSION, sizeof(jpeg_decompress_struct));
  r.source.next_input_byte = data;
  r.source.bytes_in_buffer = size;
  r.source.init_source = nothing;
  r.source.fill_input_buffer = no_more;
  r.source.skip_input_data = skip;
  r.source.resync_to_restart = r.library.resync;
  r.source.term_source = nothing;
  r.info.src = &r.source;
  r.library.read_header(&r.info, TRUE);
  return true;
}

// Begins to decode: in a file of several scans this reads all of them.
bool begin(JpegReader& r) {
  if (setjmp(r.jump) != 0) return false;
  r.library.start(&r.info);
  return true;
}

// Leaves out columns other than [left, left + width); `left` becomes the first one that is decoded.
bool crop(JpegReader& r, JDIMENSION& left, JDIMENSION width) {
  if (setjmp(r.jump) != 0) return false;
  r.library.crop(&r.info, &left, &width);
  return true;
}

bool pass_over(JpegReader& r, JDIMENSION rows) {
  if (setjmp(r.jump) != 0) return false;
  r.library.skip(&r.info, rows);
  return true;
}

// Reads `count` rows of `stride` bytes, at most kBlock.
bool read(JpegReader& r, uint8_t* target, size_t stride, JDIMENSION count) {
  if (setjmp(r.jump) != 0) return false;
  JSAMPROW rows[kBlock];
  for (JDIMENSION i = 0; i < count; ++i) rows[i] = target + stride * i;
  for (JDIMENSION have = 0; have < count;) have += r.library.read(&r.info, rows + have, count - have);
  return true;
}

bool finish(JpegReader& r) {
  if (setjmp(r.jump) != 0) return false;
  r.finishing = true;
  r.library.finish(&r.info);  // what is wrong up to the end marker counts, as in Python; a missing one does not
  return true;
}

[[noreturn]] void fail(const JpegReader& r) {
  throw BadImage(r.cut_short ? "the file is truncated" : r.message[0] != '\0' ? r.message : "broken JPEG");
}

// True where the rest of the file cannot fail, so that it need not be decoded. In a file of one Huffman scan bad codes
// are read as something; the decoder does not go beyond a marker other than a restart, and fills what is missing before
// it. So there is an error only where the data ends without one, or where the first one is not the end of the image.
bool rest_is_sound(JpegReader& r) {
  if (r.library.input_complete(&r.info)) return true;  // several scans: all were read
  if (r.info.arith_code) return false;
  int marker = r.info.unread_marker;
  const uint8_t* at = r.info.src->next_input_byte;
  const uint8_t* const end = at + r.info.src->bytes_in_buffer;
  while (marker == 0 || (marker >= 0xD0 && marker <= 0xD7)) {
    at = at == end ? nullptr : static_cast<const uint8_t*>(std::memchr(at, 0xFF, static_cast<size_t>(end - at)));
    if (at == nullptr) return false;
    while (at < end && *at == 0xFF) ++at;
    if (at == end) return false;
    marker = *at++;
  }
  return marker == 0xD9;
}

// A progressive file that lacks some of its bits is smoothed, which looks at blocks at a distance.
bool smoothed(const jpeg_decompress_struct& info) {
  if (!info.progressive_mode || info.coef_bits == nullptr) return false;
  for (int part = 0; part < info.num_components; ++part)
    for (int i = 0; i < DCTSIZE2; ++i)
      if (info.coef_bits[part][i] != 0) return true;
  return false;
}

// True where columns may be left out: libjpeg-turbo before 3.0 gets the widths of parts wrong that have a fourth or a
// third of the samples, when it also reduces.
bool can_crop(const jpeg_decompress_struct& info, int by) {
  return by == 1 || (info.max_h_samp_factor <= 2 && info.max_v_samp_factor <= 2);
}

// Inks of Adobe's inverted CMYK to RGB in Pillow's integers, in place.
void from_cmyk(uint8_t* pixels, size_t count) {
  for (uint8_t* p = pixels; count > 0; --count, p += 4) {
    const int white = p[3];  // 255 - k, and k is stored inverted
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - p[c]) * white + 128;
      p[c] = static_cast<uint8_t>(std::max(white - ((product + (product >> 8)) >> 8), 0));
    }
  }
}

}  // namespace

Jpeg::Jpeg(const uint8_t* data, size_t size) : reader_(std::make_unique<JpegReader>()) {
  if (!start(*reader_, data, size)) fail(*reader_);
  check_size(reader_->info.image_width, reader_->info.image_height);
  const int parts = reader_->info.num_components;
  if (parts != 1 && parts != 3 && parts != 4) throw BadImage("a JPEG of " + std::to_string(parts) + " components");
}

Jpeg::~Jpeg() = default;

int Jpeg::width() const { return static_cast<int>(reader_->info.image_width); }

int Jpeg::height() const { return static_cast<int>(reader_->info.image_height); }

void Jpeg::decode(int by, const Region& region, std::vector<uint8_t>& rows, RowSink& sink) {
  JpegReader& r = *reader_;
  jpeg_decompress_struct& info = r.info;
  const bool inks = info.num_components == 4;
  info.out_color_space = inks ? JCS_CMYK : JCS_EXT_RGBX;
  info.scale_num = 1;
  info.scale_denom = static_cast<unsigned>(by);
  if (!begin(r)) fail(r);
  const auto rounded_up = [by](JDIMENSION side) { return (side + static_cast<unsigned>(by) - 1) / static_cast<unsigned>(by); };
  if (info.output_width != rounded_up(info.image_width) || info.output_height != rounded_up(info.image_height) ||
      info.output_components != 4)
    throw BadImage("a JPEG that cannot be decoded at 1/" + std::to_string(by));
  const auto first = static_cast<JDIMENSION>(region.top), last = first + static_cast<JDIMENSION>(region.height);
  JDIMENSION left = 0;
  // Lossless files have blocks of one pixel, of which libjpeg reads all.
  const bool whole = info.arith_code || smoothed(info) || info.min_DCT_scaled_size * by != DCTSIZE;
  if (!whole) {
    if (can_crop(info, by)) {
      const int block = info.min_DCT_scaled_size * info.max_h_samp_factor;
      left = static_cast<JDIMENSION>(std::max(region.left - kMargin, 0) / block * block);
      const auto wanted = static_cast<JDIMENSION>(region.left + region.width + kMargin);
      const JDIMENSION width = std::min(wanted, info.output_width) - left;
      if (width < info.output_width && !crop(r, left, width)) fail(r);
    }
    const auto height = static_cast<JDIMENSION>(info.min_DCT_scaled_size * info.max_v_samp_factor);
    const JDIMENSION over = first / height * height;
    if (over > 0 && !pass_over(r, over)) fail(r);
  }
  const size_t stride = static_cast<size_t>(info.output_width) * 4;
  if (rows.size() < stride * kBlock + kSlack) rows.resize(stride * kBlock + kSlack);
  const size_t offset = static_cast<size_t>(region.left - static_cast<int>(left)) * 4;
  while (info.output_scanline < last) {
    const JDIMENSION at = info.output_scanline;
    const JDIMENSION count = std::min<JDIMENSION>(kBlock, (at < first ? first : last) - at);
    if (!read(r, rows.data(), stride, count)) fail(r);
    if (at < first) continue;
    if (inks) from_cmyk(rows.data(), static_cast<size_t>(info.output_width) * count);
    sink.take(rows.data() + offset, stride, static_cast<int>(count));
  }
  if (rest_is_sound(r)) return;
  while (info.output_scanline < info.output_height)
    if (!read(r, rows.data(), stride, std::min<JDIMENSION>(kBlock, info.output_height - info.output_scanline))) fail(r);
  if (!finish(r)) fail(r);
}

int jpeg_reduction(int from_width, int from_height, int width, int height) {
  if (width <= 0 || height <= 0) return 1;
  const int most = std::min(from_width / width, from_height / height);
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

}  // namespace resnext
