#include "resize.h"

#include <algorithm>

#include "passes.h"

namespace resnext {
namespace {

// Rows that go through the first pass together.
constexpr int kBlock = 16;

float single(double value) { return static_cast<float>(value); }

}  // namespace

void Resize::filter(Kernel kernel, const Region& part, const Box& box, int height, int width, const Window& window,
                    bool mirrored) {
  is_plain_ = false;
  across_.set(kernel, part.width, single(box.left), single(box.right), width, window.left, window.width);
  down_.set(kernel, part.height, single(box.top), single(box.bottom), height, window.top, window.height);
  const auto span = [](const FilterTaps& taps, int& low, int& size) {
    low = *std::min_element(taps.start.begin(), taps.start.end());
    int high = low + 1;
    for (size_t i = 0; i < taps.start.size(); ++i) high = std::max(high, taps.start[i] + taps.count[i]);
    size = high - low;
  };
  span(across_, left_, needs_.width);
  span(down_, top_, needs_.height);
  needs_.left = part.left + left_;
  needs_.top = part.top + top_;
  outputs_ = window.height;
  length_ = static_cast<size_t>(window.width) * 3;
  if (mirrored) across_.reverse();
  place(length_, *std::max_element(down_.count.begin(), down_.count.end()));
}

void Resize::plain(const Region& part, int height, int width, const Window& window, bool mirrored) {
  is_plain_ = true;
  plain_across_.set(part.width, width, window.left, window.width, true);
  plain_down_.set(part.height, height, window.top, window.height, false);
  left_ = plain_across_.first.front();
  top_ = plain_down_.first.front();
  needs_ = {part.left + left_, part.top + top_, plain_across_.second.back() - left_ + 1,
            plain_down_.second.back() - top_ + 1};
  outputs_ = window.height;
  length_ = static_cast<size_t>(window.width) * 3;
  if (mirrored) plain_across_.reverse();
  place(length_ * sizeof(uint16_t), 2);
}

void Resize::place(size_t row_bytes, int most_rows) {
  kept_stride_ = (row_bytes + kSlack + 63) / 64 * 64;
  rows_kept_ = most_rows + kBlock;
  const size_t bytes = kept_stride_ * static_cast<size_t>(rows_kept_);
  if (kept_.size() < bytes) kept_.resize(bytes);
  if (pointers_.size() < static_cast<size_t>(rows_kept_)) pointers_.resize(static_cast<size_t>(rows_kept_));
}

void Resize::begin(uint8_t* target) {
  target_ = target;
  taken_ = written_ = 0;
}

void Resize::take(const uint8_t* rows, size_t stride, int count) {
  while (count > 0) {
    const int some = std::min(count, kBlock);
    if (is_plain_)
      take_plain(rows, stride, some);
    else
      take_filter(rows, stride, some);
    rows += static_cast<size_t>(some) * stride;
    count -= some;
  }
}

void Resize::take_filter(const uint8_t* rows, size_t stride, int count) {
  uint8_t* targets[kBlock];
  for (int i = 0; i < count; ++i) targets[i] = kept(taken_ + i);
  filter_rows(rows, stride, count, left_, across_, targets);
  taken_ += count;
  for (; written_ < outputs_; ++written_) {
    const auto i = static_cast<size_t>(written_);
    const int first = down_.start[i] - top_, taps = down_.count[i];
    if (first + taps > taken_) return;
    for (int k = 0; k < taps; ++k) pointers_[static_cast<size_t>(k)] = kept(first + k);
    const size_t weights = i * static_cast<size_t>(down_.most);
    filter_column(pointers_.data(), taps, &down_.weights[weights], &down_.high[weights], &down_.low[weights], length_,
                  target_ + i * length_);
  }
}

void Resize::take_plain(const uint8_t* rows, size_t stride, int count) {
  const auto numbers = [this](int row) { return reinterpret_cast<uint16_t*>(kept(row)); };
  // The rows that outputs take, in runs: a reduction passes over others.
  uint16_t* targets[kBlock];
  int run = 0;
  const auto flush = [&](int end) {
    if (run > 0) plain_rows(rows + static_cast<size_t>(end - run) * stride, stride, run, left_, plain_across_, targets);
    run = 0;
  };
  size_t output = static_cast<size_t>(written_);
  for (int i = 0; i < count; ++i) {
    const int row = taken_ + i;
    while (output < plain_down_.second.size() && plain_down_.second[output] - top_ < row) ++output;
    if (output == plain_down_.second.size() || plain_down_.first[output] - top_ > row)
      flush(i);
    else
      targets[run++] = numbers(row);
  }
  flush(count);
  taken_ += count;
  for (; written_ < outputs_; ++written_) {
    const auto i = static_cast<size_t>(written_);
    if (plain_down_.second[i] - top_ >= taken_) return;
    plain_column(numbers(plain_down_.first[i] - top_), numbers(plain_down_.second[i] - top_), plain_down_.near[i],
                 plain_down_.far[i], length_, target_ + i * length_);
  }
}

}  // namespace resnext
