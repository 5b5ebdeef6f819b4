#include "png_chunks.h"

#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "image.h"

namespace resnext {
namespace {

constexpr size_t kSignature = 8, kPalette = 768;

struct Piece {
  const char* at;
  size_t size;
};

const unsigned char* raw(const char* at) { return reinterpret_cast<const unsigned char*>(at); }

uint32_t number(const char* at) {
  const unsigned char* b = raw(at);
  return static_cast<uint32_t>(b[0]) << 24 | static_cast<uint32_t>(b[1]) << 16 | static_cast<uint32_t>(b[2]) << 8 | b[3];
}

void append_number(std::string& target, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) target.push_back(static_cast<char>(value >> shift & 0xFF));
}

// The type and the content of a chunk are one piece of the file.
uint32_t checksum(const char* type, size_t content) {
  return static_cast<uint32_t>(crc32_z(crc32_z(0, nullptr, 0), raw(type), content + 4));
}

void append_chunk(std::string& target, const std::string& type_and_content) {
  append_number(target, static_cast<uint32_t>(type_and_content.size() - 4));
  target += type_and_content;
  append_number(target, checksum(type_and_content.data(), type_and_content.size() - 4));
}

bool letter(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

// Samples a pixel of a colour type with a depth; 0 where there is no such PNG.
int samples(int colour, int depth) {
  const bool small = depth == 1 || depth == 2 || depth == 4, large = depth == 8 || depth == 16;
  switch (colour) {
    case 0: return small || large ? 1 : 0;
    case 2: return large ? 3 : 0;
    case 3: return small || depth == 8 ? 1 : 0;
    case 4: return large ? 2 : 0;
    case 6: return large ? 4 : 0;
    default: return 0;
  }
}

struct Header {
  int width = 0, height = 0, depth = 0, colour = 0;
};

Header read_header(const Piece& piece) {
  if (piece.size != 13) throw BadImage("a header of " + std::to_string(piece.size) + " bytes, not 13");
  const uint32_t width = number(piece.at), height = number(piece.at + 4);
  if (width == 0 || height == 0 || width >> 31 != 0 || height >> 31 != 0)
    throw BadImage(std::to_string(width) + " x " + std::to_string(height) + " is not a valid size");
  const unsigned char* rest = raw(piece.at + 8);
  const Header header{static_cast<int>(width), static_cast<int>(height), rest[0], rest[1]};
  if (samples(header.colour, header.depth) == 0)
    throw BadImage("invalid PNG: colour type " + std::to_string(header.colour) + " with " +
                   std::to_string(header.depth) + " bits");
  if (rest[2] != 0 || rest[3] != 0 || rest[4] > 1)
    throw BadImage("unknown methods " + std::to_string(rest[2]) + ", " + std::to_string(rest[3]) + ", " +
                   std::to_string(rest[4]) + " of compression, filters, interlace");
  check_size(width, height);
  return header;
}

int significant_bits(const Piece& piece, const Header& header) {
  const int colours = header.colour == 0 || header.colour == 4 ? 1 : 3;
  if (piece.size != static_cast<size_t>(header.colour == 3 ? 3 : samples(header.colour, header.depth))) return 0;
  const unsigned char* bits = raw(piece.at);
  const auto [least, most] = std::minmax_element(bits, bits + colours);
  return *least > 0 && *most <= (header.colour == 3 ? 8 : header.depth) ? *most : 0;
}

}  // namespace

PngChunks png_chunks(const std::string& bytes) {
  Header header;
  Piece head{}, palette{}, significant{};
  std::vector<Piece> parts;
  size_t at = kSignature;
  while (at + 8 <= bytes.size()) {
    const char* type = &bytes[at + 4];
    const bool image = bytes.compare(at + 4, 4, "IDAT") == 0;
    if (!parts.empty() && !image) break;  // nothing after the image data matters
    const size_t length = number(&bytes[at]), room = bytes.size() - at - 8;
    if (!std::all_of(type, type + 4, letter)) throw BadImage("no chunk at byte " + std::to_string(at));
    const std::string name(type, 4);
    if (length + 4 > room) throw BadImage("the file is truncated in chunk " + name);
    const Piece content{type + 4, length};
    const auto sound = [&] { return checksum(type, length) == number(content.at + length); };
    at += 12 + length;
    if (head.at == nullptr && name != "IHDR") throw BadImage("the first chunk is " + name + ", not IHDR");
    if ((type[0] & 0x20) != 0) {  // a lower-case letter: not critical
      if (name == "sBIT" && significant.at == nullptr && sound()) significant = content;
      continue;
    }
    if (!sound()) throw BadImage("checksum mismatch in chunk " + name);
    if (name == "IHDR") {
      if (head.at != nullptr) throw BadImage("two IHDR chunks");
      header = read_header(content);
      head = content;
    } else if (name == "PLTE") {
      if (palette.at != nullptr) throw BadImage("two PLTE chunks");
      palette = content;
    } else if (image) {
      parts.push_back(content);
    } else {
      throw BadImage(name == "IEND" ? "no image data before IEND" : "unknown critical chunk " + name);
    }
  }
  if (parts.empty()) throw BadImage("the file is truncated");
  if (header.colour == 3 &&
      (palette.at == nullptr || palette.size == 0 || palette.size % 3 != 0 || palette.size > kPalette))
    throw BadImage("palette image with a missing or invalid palette");
  PngChunks chunks;
  chunks.width = header.width;
  chunks.height = header.height;
  chunks.depth = header.depth;
  if (significant.at != nullptr) chunks.significant = significant_bits(significant, header);
  size_t size = 0;
  for (const Piece& part : parts) size += part.size;
  std::string& stream = chunks.stream;
  stream.reserve(size + 1000);
  stream.assign(bytes, 0, kSignature);
  append_chunk(stream, "IHDR" + std::string(head.at, head.size));
  if (header.colour == 3) {
    std::string colours(palette.at, palette.size);
    colours.resize(kPalette, '\0');  // an index beyond the palette is black
    append_chunk(stream, "PLTE" + colours);
  }
  append_number(stream, static_cast<uint32_t>(size));
  stream += "IDAT";
  for (const Piece& part : parts) stream.append(part.at, part.size);
  append_number(stream, 0);
  append_chunk(stream, "IEND");
  return chunks;
}

}  // namespace resnext
