// Which images there are, and their labels.
#pragma once

#include <string>
#include <vector>

namespace resnext {

struct Sample {
  std::string path;  // as it is opened and reported
  int label = -1;    // position among the classes, -1 where there is none
};

struct Dataset {
  std::vector<Sample> samples;       // sorted by path
  bool labelled = false;             // true where each has a label
  std::vector<std::string> remarks;  // lines to read: files that were passed over, classes told by position
};

// Opens `data`: a folder of class folders, a folder of images, a text list of "path label" lines, or one image. With
// `labels` (JSON: file name -> class name or number, or a text list) they say which class each image has. Files, lists
// and classes mean what they mean to resnext-run: resnext_core/data/{classes,folders,lists}.py. `has_names` is false
// where the `classes` are mere numbers.
// Error(kData) for what is missing, empty or ambiguous, and for a class that is not among `classes`.
Dataset open_dataset(const std::string& data, const std::string& labels, const std::vector<std::string>& classes,
                     bool has_names);

}  // namespace resnext
