#include "stream.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"
#include "stop.h"

namespace resnext {
namespace {

constexpr size_t kMaxImages = size_t{64} << 20;  // bytes of a frame, unless an image is larger
constexpr size_t kPiece = size_t{1} << 20;       // that memory grows by while a frame arrives

// Reads exactly `bytes`; false at the end of the input before the first of them.
bool read_all(int file, void* target, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    wait_readable(file);
    const ssize_t n = read(file, static_cast<char*>(target) + done, bytes - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error(kData, std::string("cannot read standard input: ") + std::strerror(errno));
    if (n == 0 && done == 0) return false;
    if (n == 0) throw Error(kData, "standard input ends inside a frame");
    done += static_cast<size_t>(n);
  }
  return true;
}

void write_all(int file, const void* source, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = write(file, static_cast<const char*>(source) + done, bytes - done);
    if (n < 0 && errno == EINTR) {
      check_stop("while writing an answer");
      continue;
    }
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

size_t row_size(const Model& model, char kind) { return model.image_bytes() * (kind == 'T' ? sizeof(float) : 1); }

// Reads what follows the head of a frame, without believing in the announced length before it comes.
void read_payload(int file, size_t length, std::vector<char>& payload) {
  payload.clear();
  while (payload.size() < length) {
    const size_t done = payload.size(), piece = std::min(length - done, kPiece);
    payload.resize(done + piece);
    if (!read_all(file, payload.data() + done, piece)) throw Error(kData, "standard input ends inside a frame");
  }
}

// Computes the rows of a frame.
void answer(Model& model, char kind, const std::vector<char>& payload, std::vector<float>& logits) {
  const size_t row_bytes = row_size(model, kind);
  const uint32_t n = payload.size() < 4 ? 0 : get_uint32(payload.data());
  if (n == 0 || payload.size() - 4 != static_cast<size_t>(n) * row_bytes)
    throw Error(kUsage, "a frame of " + std::to_string(payload.size()) + " bytes does not hold whole images");
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
    if (head[0] != 'I' && head[0] != 'T') 
      throw Error(kData, "standard input does not have this program's frame format");
    const size_t most = std::max(kMaxImages, row_size(model, head[0])) + 4;
    if (length > most)
      throw Error(kData, "a frame announces " + std::to_string(length) + " bytes; the limit is " +
                             std::to_string(most) + ": send fewer images at once");
    read_payload(input, length, payload);
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
