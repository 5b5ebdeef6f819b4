#include "pipeline.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#include "error.h"
#include "exif.h"
#include "image.h"
#include "preprocess.h"

namespace resnext {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kSlots = 3;

float milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<float, std::milli>(to - from).count();
}

// A batch being filled, or being computed.
struct Slot {
  std::vector<uint8_t> pixels;
  std::vector<std::string> errors;
  std::vector<Clock::time_point> begun;
  size_t missing = 0;
};

class Decoders {
 public:
  Decoders(const std::vector<Sample>& samples, const Preprocess& how, size_t batch, size_t workers)
      : samples_(samples),
        how_(how),
        batch_(batch),
        bytes_(static_cast<size_t>(how.size) * static_cast<size_t>(how.size) * 3),
        preprocess_(samples.size()) {
    for (size_t i = 0; i < kSlots; ++i) {
      slots_[i].pixels.resize(batch * bytes_);
      slots_[i].errors.resize(batch);
      slots_[i].begun.resize(batch);
      slots_[i].missing = size_of(i);
    }
    try {
      for (size_t i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {
      end();
      throw;
    }
  }
  ~Decoders() { end(); }

  size_t size_of(size_t batch) const {
    const size_t first = batch * batch_;
    return first >= samples_.size() ? 0 : std::min(batch_, samples_.size() - first);
  }

  // Waits until a batch is complete.
  Slot& wait(size_t batch) {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_[batch % kSlots];
    filled_.wait(lock, [&] { return slot.missing == 0 || failure_ != nullptr; });
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    return slot;
  }

  // Gives the place of a batch to a later one.
  void release(size_t batch) {
    const std::lock_guard lock(mutex_);
    slots_[batch % kSlots].missing = size_of(batch + kSlots);
    released_ = batch + 1;
    room_.notify_all();
  }

  std::vector<float> take_times() { return std::move(preprocess_); }

 private:
  void end() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      room_.notify_all();
    }
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void work() {
    try {
      PixelMaker maker;
      while (true) {
        size_t i = 0;
        {
          std::unique_lock lock(mutex_);
          i = next_++;
          if (i >= samples_.size()) return;
          room_.wait(lock, [&] { return ended_ || i / batch_ < released_ + kSlots; });
          if (ended_) return;
        }
        fill(maker, i);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (failure_ == nullptr) failure_ = std::current_exception();
      filled_.notify_all();
    }
  }

  void fill(PixelMaker& maker, size_t i) {
    Slot& slot = slots_[i / batch_ % kSlots];
    const size_t row = i % batch_;
    uint8_t* target = slot.pixels.data() + row * bytes_;
    const Clock::time_point begun = Clock::now();
    std::string error;
    try {
      const std::string bytes = read_picture(samples_[i].path);
      Picture picture(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
      maker.evaluate(picture, how_, how_.oriented ? orientation(bytes) : 1, target);
    } catch (const BadImage& bad) {
      error = bad.what();
    } catch (const std::bad_alloc&) {
      error = "not enough memory to decode it";
    }
    if (!error.empty()) std::memset(target, 0, bytes_);
    preprocess_[i] = milliseconds(begun, Clock::now());
    const std::lock_guard lock(mutex_);
    slot.errors[row] = std::move(error);
    slot.begun[row] = begun;
    if (--slot.missing == 0) filled_.notify_all();
  }

  const std::vector<Sample>& samples_;
  const Preprocess how_;
  const size_t batch_, bytes_;
  Slot slots_[kSlots];
  std::vector<float> preprocess_;
  std::mutex mutex_;
  std::condition_variable filled_, room_;
  size_t next_ = 0, released_ = 0;
  bool ended_ = false;
  std::exception_ptr failure_;
  std::vector<std::thread> threads_;
};

}  // namespace

Timings run_pipeline(const std::vector<Sample>& samples, Model& model, size_t batch, size_t workers,
                     const std::atomic<bool>& stop, const std::function<void(const BatchResult&)>& on_batch) {
  Timings timings;
  std::vector<float> logits(batch * static_cast<size_t>(model.classes()));
  const Clock::time_point started = Clock::now();
  Decoders decoders(samples, model.manifest().preprocess, batch, workers);
  for (size_t b = 0; b * batch < samples.size(); ++b) {
    if (stop) throw Error(kInterrupted, "stopped after " + std::to_string(b * batch) + " images");
    Slot& slot = decoders.wait(b);
    const size_t count = decoders.size_of(b);
    const Clock::time_point begun = Clock::now();
    model.logits(slot.pixels.data(), static_cast<int>(count), logits.data());
    const Clock::time_point done = Clock::now();
    timings.engine.push_back(milliseconds(begun, done));
    for (size_t row = 0; row < count; ++row) timings.whole.push_back(milliseconds(slot.begun[row], done));
    BatchResult result;
    result.first = b * batch;
    result.count = count;
    result.pixels = slot.pixels.data();
    result.logits = logits.data();
    result.errors = slot.errors.data();
    on_batch(result);
    decoders.release(b);
  }
  timings.seconds = std::chrono::duration<double>(Clock::now() - started).count();
  timings.preprocess = decoders.take_times();
  return timings;
}

}  // namespace resnext
