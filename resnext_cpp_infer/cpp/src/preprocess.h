// From a decoded image to what the network takes, as the manifest says.
#pragma once

#include <cstdint>

#include "image.h"
#include "manifest.h"

namespace resnext {

// Resizes and centre-crops: writes uint8 (size, size, 3).
void eval_pixels(const Image& image, const Preprocess& how, uint8_t* target);

// The smallest sides that a JPEG may be decoded to, 0 where the manifest does not allow it.
int decode_minimum(const Preprocess& how);

// Turns uint8 (n, size, size, 3) into float32 (n, 3, size, size): (x - mean) / std.
void normalize(const uint8_t* images, int n, const Preprocess& how, float* target);

}  // namespace resnext
