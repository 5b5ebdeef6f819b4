#include "protobuf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace resnext {
namespace {

[[noreturn]] void fail(const std::string& path, int file) {
  const int error = errno;
  if (file >= 0) close(file);
  throw Error(kData, "cannot read " + path + ": " + std::strerror(error));
}

}  // namespace

bool Fields::next(Field& field) {
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

bool Fields::varint(uint64_t& value) {
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

bool Fields::take(uint64_t count, std::string_view& bytes) {
  if (count > left_.size()) return false;
  bytes = left_.substr(0, count);
  left_.remove_prefix(count);
  return true;
}

MappedFile::MappedFile(const std::string& path) {
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

MappedFile::~MappedFile() {
  if (size_ > 0) munmap(data_, size_);
}

}  // namespace resnext
