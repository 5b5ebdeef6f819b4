// From an image file to what the network takes, as the manifest says.
#pragma once

#include <cstdint>
#include <vector>

#include "image.h"
#include "manifest.h"
#include "resize.h"

namespace resnext {

// Makes pixels of pictures; one object serves one thread and keeps its memory from picture to picture.
class PixelMaker {
 public:
  // For evaluation: decodes, turns by `orientation` (1 to 8), resizes and centre-crops as `how` says; writes uint8
  // (how.size, how.size, 3).
  void evaluate(Picture& picture, const Preprocess& how, int orientation, uint8_t* target);

  // For training: a box in pixels of the whole picture, which becomes size x size (resnext_core/data/plan.py), mirrored
  // with `flip`. A JPEG may be decoded smaller while its sides stay at least `least_width` x `least_height`, unless these
  // are 0. All of this is of the picture turned by `orientation`, and the box must lie in it.
  struct Crop {
    double left = 0, top = 0, width = 0, height = 0;
    int least_width = 0, least_height = 0;
    int size = 0;
    Preprocess::Filter filter = Preprocess::Filter::kAntialias;
    bool flip = false;
    int orientation = 1;
  };
  void crop(Picture& picture, const Crop& crop, uint8_t* target);

 private:
  void set_evaluation(int width, int height, const Preprocess& how);
  void set_crop(int width, int height, double scale, const Crop& crop);

  void run(Picture& picture, int by, int orientation, uint8_t* target);

  Resize resize_;
  std::vector<uint8_t> rows_, turned_rows_;
};

// Turns uint8 (n, size, size, 3) into float32 (n, 3, size, size): (x - mean) / std.
void normalize(const uint8_t* images, int n, const Preprocess& how, float* target);

}  // namespace resnext
