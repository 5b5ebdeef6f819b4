// The EXIF orientation of an image file, as resnext_core/data/exif.py reads it.
#pragma once

#include <string>

#include "image.h"

namespace resnext {

// The orientation, 1 to 8, of a JPEG or PNG file: 1 where it states none, or its EXIF data is broken.
int orientation(const std::string& bytes);

// An image that is stored with an orientation, as it is meant to be seen.
Image turned(Image image, int orientation);

}  // namespace resnext
