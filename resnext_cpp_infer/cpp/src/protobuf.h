// Files in protobuf's wire format, read without protobuf (https://protobuf.dev/programming-guides/encoding/).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace resnext {

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
  bool next(Field& field);
  bool broken() const { return broken_; }

 private:
  bool varint(uint64_t& value);
  bool take(uint64_t count, std::string_view& bytes);

  std::string_view left_;
  bool broken_ = false;
};

// A file in memory, as long as this lives; Error(kData) where it cannot be read.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace resnext
