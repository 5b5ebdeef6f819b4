#include "onnx_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "error.h"
#include "sha256.h"

namespace resnext {
namespace {

// Numbers of fields: onnx.proto.
constexpr uint64_t kGraph = 7, kMetadata = 14, kKey = 1, kValue = 2, kInitializer = 5, kDataType = 2;
constexpr uint64_t kFloat = 1;
constexpr const char* kManifestKey = "resnext";

// A field of a message: its number, its value (or its bytes), and the whole of it as it lies in the file.
struct Field {
  uint64_t number = 0, value = 0;
  std::string_view bytes, whole;
};

// Reads the fields of a message one by one.
class Fields {
 public:
  explicit Fields(std::string_view message) : left_(message) {}

  // False at the end, and where what is left is no field; then broken() is true.
  bool next(Field& field) {
    if (left_.empty() || broken_) return false;
    const std::string_view from = left_;
    uint64_t tag = 0, length = 0;
    broken_ = true;
    if (!varint(tag) || tag >> 3 == 0) return false;
    field = Field{};
    field.number = tag >> 3;
    switch (tag & 7) {
      case 0:
        if (!varint(field.value)) return false;
        break;
      case 1:
        if (!take(8, field.bytes)) return false;
        break;
      case 2:
        if (!varint(length) || !take(length, field.bytes)) return false;
        break;
      case 5:
        if (!take(4, field.bytes)) return false;
        break;
      default:
        return false;
    }
    field.whole = from.substr(0, from.size() - left_.size());
    broken_ = false;
    return true;
  }
  bool broken() const { return broken_; }

 private:
  bool varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (left_.empty()) return false;
      const auto byte = static_cast<unsigned char>(left_.front());
      left_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool take(uint64_t count, std::string_view& bytes) {
    if (count > left_.size()) return false;
    bytes = left_.substr(0, count);
    left_.remove_prefix(count);
    return true;
  }

  std::string_view left_;
  bool broken_ = false;
};

// A file in memory, as long as this lives.
class Mapped {
 public:
  explicit Mapped(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status {};
    if (file < 0 || fstat(file, &status) != 0) fail(path, file);
    size_ = static_cast<size_t>(status.st_size);
    if (size_ > 0) {
      data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
      if (data_ == MAP_FAILED) fail(path, file);
    }
    close(file);
  }
  ~Mapped() {
    if (size_ > 0) munmap(data_, size_);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  [[noreturn]] static void fail(const std::string& path, int file) {
    const int error = errno;
    if (file >= 0) close(file);
    throw Error(kData, "cannot read " + path + ": " + std::strerror(error));
  }
  void* data_ = nullptr;
  size_t size_ = 0;
};

// How many constants of a graph are no float32. A damaged byte may make one look so; a tool makes many.
size_t other_constants(std::string_view graph) {
  size_t count = 0;
  Fields fields(graph);
  for (Field field; fields.next(field);) {
    if (field.number != kInitializer) continue;
    Fields tensor(field.bytes);
    uint64_t type = kFloat;
    for (Field part; tensor.next(part);)
      if (part.number == kDataType) type = part.value;
    count += type == kFloat ? 0 : 1;
  }
  return count;
}

}  // namespace

OnnxFile read_onnx(const std::string& path) {
  const Mapped mapped(path);
  OnnxFile found;
  Sha256 content;
  size_t others = 0;
  Fields fields(mapped.bytes());
  for (Field field; fields.next(field);) {
    if (field.number != kMetadata) content.update(field.whole);
    if (field.number == kGraph) others += other_constants(field.bytes);
    if (field.number != kMetadata) continue;
    std::string key, value;
    Fields entry(field.bytes);
    for (Field part; entry.next(part);) {
      if (part.number == kKey) key = part.bytes;
      if (part.number == kValue) value = part.bytes;
    }
    if (key == kManifestKey) found.manifest = value;
  }
  found.readable = !fields.broken() && !mapped.bytes().empty();
  found.converted = others > 1;
  found.content = "sha256:" + content.hex();
  return found;
}

}  // namespace resnext
