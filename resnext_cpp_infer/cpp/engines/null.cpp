// The engine `null`: no network, but logits that depend on every pixel, the same on every machine. For tests, and to
// see how fast the rest is. Logit c of an image is the mean of its bytes at positions c, c + classes, c + 2 * classes,
// ...

#include <cstdio>

#include "resnext_engine.h"

struct resnext_model {
  size_t bytes;
  int classes;
};

namespace {

resnext_model* open_model(const resnext_request* request, char* error, size_t size) {
  if (request->image_size < 1 || request->classes < 1) {
    std::snprintf(error, size, "it needs a manifest beside the model: %s.json", request->path);
    return nullptr;
  }
  const auto side = static_cast<size_t>(request->image_size);
  return new resnext_model{side * side * 3, request->classes};
}

int run(resnext_model* model, const void* rows, int32_t n, float* logits, size_t capacity, char* error, size_t size) {
  const auto classes = static_cast<size_t>(model->classes);
  if (capacity < static_cast<size_t>(n) * classes) {
    std::snprintf(error, size, "the buffer for %zu logits is too small", capacity);
    return 1;
  }
  const auto* bytes = static_cast<const uint8_t*>(rows);
  for (int32_t i = 0; i < n; ++i, bytes += model->bytes) {
    for (size_t c = 0; c < classes; ++c) {
      uint64_t sum = 0, count = 0;
      for (size_t p = c; p < model->bytes; p += classes, ++count) sum += bytes[p];
      *logits++ = count == 0 ? 0.0F : static_cast<float>(static_cast<double>(sum) / static_cast<double>(count));
    }
  }
  return 0;
}

const resnext_engine kEngine = {
    RESNEXT_ENGINE_ABI,
    "null",
    "cpu",
    open_model,
    [](const resnext_model*) { return "null"; },
    [](const resnext_model*) -> const char* { return nullptr; },
    [](const resnext_model*) { return RESNEXT_IMAGES_UINT8; },
    [](const resnext_model*) -> int32_t { return 0; },
    run,
    [](resnext_model* model) { delete model; },
};

}  // namespace

const resnext_engine* resnext_engine_get(uint32_t abi, uint32_t* own) {
  *own = RESNEXT_ENGINE_ABI;
  return abi == RESNEXT_ENGINE_ABI ? &kEngine : nullptr;
}
