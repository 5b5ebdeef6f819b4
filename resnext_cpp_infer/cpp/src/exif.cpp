#include "exif.h"

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace resnext {
namespace {

constexpr std::string_view kPrefix{"Exif\0\0", 6};
constexpr uint32_t kOrientation = 0x0112, kShort = 3, kLong = 4;

uint8_t byte(std::string_view data, size_t at) { return static_cast<uint8_t>(data[at]); }

// A number of `count` bytes at a place that is inside.
uint32_t number(std::string_view data, size_t at, size_t count, bool big) {
  uint32_t value = 0;
  for (size_t i = 0; i < count; ++i) value = value << 8 | byte(data, at + (big ? i : count - 1 - i));
  return value;
}

// -- JPEG: the segments of resnext_core/data/jpeg.py ------------------------------------------------

// The place of the next marker's 0xFF, or the end of the file.
size_t next_marker(std::string_view data, size_t at) {
  while ((at = data.find('\xFF', at)) != std::string_view::npos) {
    if (at + 1 < data.size() && byte(data, at + 1) == 0xFF) {  // padding
      ++at;
    } else if (at + 1 < data.size() && byte(data, at + 1) == 0) {  // a byte 0xFF, no marker
      at += 2;
    } else {
      return at;
    }
  }
  return data.size();
}

// The end of the segment that starts there; 0 for a scan and for what libjpeg would reject.
size_t segment_end(std::string_view data, size_t start) {
  const int marker = start + 1 < data.size() ? byte(data, start + 1) : 0;
  if (marker == 0x01 || (marker >= 0xD0 && marker < 0xD8)) return start + 2;  // without a segment
  const bool skipped = (marker >= 0xE0 && marker < 0xF0) || marker == 0xFE;
  const bool needed = marker >= 0xC0 && marker < 0xE0 && marker != 0xD8 && marker != 0xD9 && marker != 0xDA;
  if ((!skipped && !needed) || start + 4 > data.size()) return 0;
  const size_t length = number(data, start + 2, 2, true);
  return length >= 2 && start + 2 + length <= data.size() ? start + 2 + length : 0;
}

std::string exif_of_jpeg(std::string_view data) {
  std::string found;
  for (size_t at = 2;;) {
    const size_t start = next_marker(data, at);
    at = segment_end(data, start);
    if (at == 0) return found;
    if (byte(data, start + 1) != 0xE1) continue;
    const std::string_view content = data.substr(start + 4, at - start - 4);
    if (content.substr(0, kPrefix.size()) == kPrefix) found += content.substr(kPrefix.size());
  }
}

// -- PNG -----------------------------------------------------------------------------------------

// Empty also where its checksum is wrong.
std::string exif_of_png(std::string_view data) {
  for (size_t at = 8; at + 12 <= data.size();) {
    const size_t length = number(data, at, 4, true);
    const std::string_view type = data.substr(at + 4, 4);
    if (length > data.size() - at - 12 || type == "IEND") break;
    if (type == "eXIf") {
      const auto* raw = reinterpret_cast<const Bytef*>(data.data()) + at + 4;
      const auto sum = static_cast<uint32_t>(crc32_z(crc32_z(0, nullptr, 0), raw, length + 4));
      return sum == number(data, at + 8 + length, 4, true) ? std::string(data.substr(at + 8, length)) : "";
    }
    at += 12 + length;
  }
  return "";
}

// -- EXIF ----------------------------------------------------------------------------------------

int read(std::string_view data) {
  while (data.substr(0, kPrefix.size()) == kPrefix) data.remove_prefix(kPrefix.size());
  if (data.size() < 8) return 1;
  const bool big = data.substr(0, 2) == "MM";
  if (!big && data.substr(0, 2) != "II") return 1;
  if (number(data, 2, 2, true) != 42 && number(data, 2, 2, false) != 42) return 1;
  const size_t at = number(data, 4, 4, big);
  if (at + 2 > data.size()) return 1;
  const size_t entries = number(data, at, 2, big);
  for (size_t i = 0, entry = at + 2; i < entries; ++i, entry += 12) {
    if (entry + 12 > data.size()) return 1;
    if (number(data, entry, 2, big) != kOrientation) continue;
    const uint32_t kind = number(data, entry + 2, 2, big), count = number(data, entry + 4, 4, big);
    if ((kind != kShort && kind != kLong) || count != 1) return 1;
    const uint32_t value = number(data, entry + 8, kind == kShort ? 2 : 4, big);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

// Which way a step along the stored rows, and down the stored columns, goes in the turned image.
bool from_the_right(int orientation) {
  return orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
}

bool from_below(int orientation) {
  return orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
}

}  // namespace

int orientation(const std::string& bytes) {
  const std::string_view data = bytes;
  if (data.substr(0, 3) == "\xFF\xD8\xFF") return read(exif_of_jpeg(data));
  if (data.substr(0, 8) == std::string_view("\x89PNG\r\n\x1A\n", 8)) return read(exif_of_png(data));
  return 1;
}

Region stored_region(const Region& turned, int width, int height, int orientation) {
  Region stored = turned;
  if (turns_sides(orientation)) stored = {turned.top, turned.left, turned.height, turned.width};
  if (from_the_right(orientation)) stored.left = width - stored.left - stored.width;
  if (from_below(orientation)) stored.top = height - stored.top - stored.height;
  return stored;
}

Image turned(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const bool sideways = turns_sides(orientation);
  const bool from_right = from_the_right(orientation), from_bottom = from_below(orientation);
  Image made;
  made.width = sideways ? image.height : image.width;
  made.height = sideways ? image.width : image.height;
  made.pixels.resize(image.pixels.size());
  const auto width = static_cast<std::ptrdiff_t>(image.width), height = static_cast<std::ptrdiff_t>(image.height);
  const std::ptrdiff_t right = from_right ? -3 : 3, below = (from_bottom ? -3 : 3) * width;
  const std::ptrdiff_t across = sideways ? below : right, down = sideways ? right : below;
  std::ptrdiff_t row = ((from_right ? width - 1 : 0) + (from_bottom ? height - 1 : 0) * width) * 3;
  uint8_t* target = made.pixels.data();
  for (int y = 0; y < made.height; ++y, row += down) {
    std::ptrdiff_t at = row;
    for (int x = 0; x < made.width; ++x, at += across, target += 3)
      std::memcpy(target, &image.pixels[static_cast<size_t>(at)], 3);
  }
  return made;
}

}  // namespace resnext
