#include "stream.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"

namespace resnext {
namespace {

constexpr uint32_t kMaxFrame = 1U << 31;

// Reads exactly `bytes`; false at the end of the input before the first of them.
bool read_all(int file, void* target, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n = read(file, static_cast<char*>(target) + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(kData, std::string("cannot read standard input: ") + std::strerror(errno));
    if (n == 0 && done == 0) return false;
    if (n == 0) throw Error(kData, "standard input ends within a frame");
    done += static_cast<size_t>(n);
  }
  return true;
}

void write_all(int file, const void* source, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = write(file, static_cast<const char*>(source) + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(kData, std::string("cannot write standard output: ") + std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

void put_uint32(char* target, uint32_t value) {
  for (int i = 0; i < 4; ++i) target[i] = static_cast<char>(value >> (8 * i));
}

uint32_t get_uint32(const char* source) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<unsigned char>(source[i])) << (8 * i);
  return value;
}

void send(int file, char kind, const void* payload, size_t bytes) {
  char head[5] = {kind};
  put_uint32(head + 1, static_cast<uint32_t>(bytes));
  write_all(file, head, sizeof head);
  write_all(file, payload, bytes);
}

// Computes the rows of a frame. `row_bytes` is the size of a row of its kind.
void answer(Model& model, char kind, const std::vector<char>& payload, std::vector<float>& logits) {
  const size_t row_bytes = model.image_bytes() * (kind == 'T' ? sizeof(float) : 1);
  const uint32_t n = payload.size() < 4 ? 0 : get_uint32(payload.data());
  if (n == 0 || payload.size() - 4 != static_cast<size_t>(n) * row_bytes)
    throw Error(kUsage, "a frame of " + std::to_string(payload.size()) + " bytes is not of whole images");
  logits.resize(static_cast<size_t>(n) * static_cast<size_t>(model.classes()));
  const void* rows = payload.data() + 4;
  if (kind == 'I') {
    model.logits(static_cast<const uint8_t*>(rows), static_cast<int>(n), logits.data());
    return;
  }
  std::vector<float> tensor(static_cast<size_t>(n) * model.image_bytes());  // aligned
  std::memcpy(tensor.data(), rows, tensor.size() * sizeof(float));
  model.logits_from_tensor(tensor.data(), static_cast<int>(n), logits.data());
}

}  // namespace

void serve_stream(Model& model, int input, int output) {
  send(output, 'M', model.manifest_text().data(), model.manifest_text().size());
  std::vector<char> payload;
  std::vector<float> logits;
  for (char head[5]; read_all(input, head, sizeof head) && head[0] != 'Q';) {
    const uint32_t length = get_uint32(head + 1);
    if ((head[0] != 'I' && head[0] != 'T') || length > kMaxFrame)
      throw Error(kData, "standard input is not of this program's frames");
    payload.resize(length);
    if (length > 0 && !read_all(input, payload.data(), length))
      throw Error(kData, "standard input ends within a frame");
    try {
      answer(model, head[0], payload, logits);
      send(output, 'L', logits.data(), logits.size() * sizeof(float));
    } catch (const Error& error) {
      const std::string text = std::string(1, static_cast<char>(error.code)) + error.what();
      send(output, 'E', text.data(), text.size());
    }
  }
}

}  // namespace resnext
