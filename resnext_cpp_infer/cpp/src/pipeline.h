// Decoding threads, batches in the order of the images, and the engine: each at work while the others are.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dataset.h"
#include "engine.h"

namespace resnext {

// Milliseconds: to decode and resize an image, of a call of the engine, and from the one's begin to the other's end.
struct Timings {
  std::vector<float> preprocess, engine, whole;
  double seconds = 0;
};

// A batch that is done; everything is valid during the call only.
struct BatchResult {
  size_t first = 0, count = 0;          // of the samples
  const uint8_t* pixels = nullptr;      // uint8 (count, size, size, 3); zeros where there is an error
  const float* logits = nullptr;        // (count, classes)
  const std::string* errors = nullptr;  // (count), empty where the image was read
};

// Takes all samples through `model`, `batch` at a time, with `workers` decoding threads and memory for three batches.
// `on_batch` is called from this thread, in order. `stop` ends it after the batch at hand: Error(kInterrupted).
Timings run_pipeline(const std::vector<Sample>& samples, Model& model, size_t batch, size_t workers,
                     const std::atomic<bool>& stop, const std::function<void(const BatchResult&)>& on_batch);

}  // namespace resnext
