// What an artefact says of itself: image size, preprocessing, classes. No constant of these is anywhere in this
// program.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

namespace resnext {

struct Preprocess {
  enum class Mode { kShorterSide, kSquash };
  enum class Filter { kAntialias, kBicubic, kPlain };
  int size = 0;    // pixels of the crop
  int resize = 0;  // pixels before it
  Mode mode = Mode::kSquash;
  Filter filter = Filter::kAntialias;
  std::array<float, 3> mean{};  // on 0..255
  std::array<float, 3> std{};
  bool scaled_decode = false;
  bool oriented = false;  // turned as its EXIF data says, before everything else
};

struct Manifest {
  Preprocess preprocess;
  std::vector<std::string> classes;  // no two are equal
  bool has_names = true;             // false: the classes are mere numbers that stand for names nobody gave
  std::string variant;
  std::string digest;
  std::string content;         // the artefact's own digest, empty where it does not state one
  std::string file_digest;     // of the whole file that the manifest is beside, empty where it does not state one
  std::vector<int> batch_sizes;  // that a model of dynamic batch was converted for, ascending; empty: any
  std::string golden_compute;  // what the golden logits were computed in
  std::vector<double> golden;  // (images, classes), empty where there are none
  std::string precision;       // what an artefact in few bits computes in, empty for float32
  // By instruction set: the logits (images, classes) that an artefact in few bits has there.
  std::map<std::string, std::vector<double>> proofs;

  // Reads the JSON of a manifest, as strictly as parse_manifest in resnext_core/model/weights.py: what the one refuses, the
  // other does. `where` is named in an Error(kData).
  static Manifest parse(const std::string& text, const std::string& where);
};

// The content of the sidecar <artefact>.json, or empty where there is none; Error(kData) where it cannot be read.
std::string sidecar(const std::string& artefact);

// The whole of a file; Error(kData) where it cannot be read.
std::string read_file(const std::string& path);

}  // namespace resnext
