// The EXIF orientation of an image file, as resnext_core/data/exif.py reads it.
#pragma once

#include <string>

#include "image.h"

namespace resnext {

// The orientation, 1 to 8, of a JPEG or PNG file: 1 where it states none, or its EXIF data is broken.
int orientation(const std::string& bytes);

// True where width and height change places.
inline bool turns_sides(int orientation) { return orientation >= 5; }

// Where a part of the turned picture is stored, in a picture of `width` x `height` as it is stored.
Region stored_region(const Region& turned, int width, int height, int orientation);

// An image that is stored with an orientation, as it is meant to be seen.
Image turned(Image image, int orientation);

}  // namespace resnext
