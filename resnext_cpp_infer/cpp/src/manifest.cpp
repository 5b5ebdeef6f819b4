#include "manifest.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <unordered_map>

#include "error.h"
#include "json.h"

namespace resnext {
namespace {

// Format of the manifest, resnext_core/weights.py.
constexpr long kFormat = 1;
constexpr long kMaxPixels = 8192, kMaxClasses = 1000000;

template <typename T>
T one_of(const Json& value, const std::string& what, const char* first, T a, const char* second, T b) {
  const std::string& text = value.string(what);
  if (text == first) return a;
  if (text == second) return b;
  throw Error(kData, what + " must be " + first + " or " + second + ", not '" + text + "'");
}

std::array<float, 3> three(const Json& value, const std::string& what) {
  const auto& items = value.array(what);
  if (items.size() != 3) throw Error(kData, what + " must be three numbers");
  std::array<float, 3> out{};
  for (size_t i = 0; i < 3; ++i) out[i] = static_cast<float>(items[i].number(what));
  return out;
}

Preprocess read_preprocess(const Json& json) {
  Preprocess p;
  p.size = static_cast<int>(json.at("size").integer("preprocess size", 1, kMaxPixels));
  p.resize = static_cast<int>(json.at("resize").integer("preprocess resize", 1, kMaxPixels));
  p.mode = one_of(json.at("mode"), "preprocess mode", "shorter-side", Preprocess::Mode::kShorterSide, "squash",
                  Preprocess::Mode::kSquash);
  p.filter = one_of(json.at("filter"), "preprocess filter", "antialias", Preprocess::Filter::kAntialias, "plain",
                    Preprocess::Filter::kPlain);
  p.mean = three(json.at("mean"), "preprocess mean");
  p.std = three(json.at("std"), "preprocess std");
  p.scaled_decode = json.at("scaled_decode").boolean("preprocess scaled_decode");
  if (json.at("color_order").string("preprocess color_order") != "RGB")
    throw Error(kData, "preprocess color_order must be RGB");
  if (p.resize < p.size) throw Error(kData, "preprocess resize is below its size");
  for (const float s : p.std)
    if (!(s > 0)) throw Error(kData, "preprocess std must be above 0");
  static const char* const known[] = {"size", "resize", "mode",          "filter",
                                      "mean", "std",    "scaled_decode", "color_order"};
  for (const auto& [key, value] : json.members()) {
    bool found = false;
    for (const char* name : known) found = found || key == name;
    if (!found) throw Error(kData, "preprocess '" + key + "' is unknown to this program; it is of a newer release");
  }
  return p;
}

// No two classes have one name; where the manifest does not say whether they are names, 0, 1, ... are none.
void check_class_names(const Json& json, Manifest& manifest) {
  std::unordered_map<std::string, size_t> seen;
  bool numbers = true;
  for (size_t i = 0; i < manifest.classes.size(); ++i) {
    const std::string& name = manifest.classes[i];
    if (name.empty()) throw Error(kData, "class " + std::to_string(i) + " has an empty name");
    const auto [other, added] = seen.emplace(name, i);
    if (!added)
      throw Error(kData, "the class name " + name + " is that of class " + std::to_string(other->second) +
                             " and of class " + std::to_string(i));
    numbers = numbers && name == std::to_string(i);
  }
  const Json* named = json.find("named_classes");
  manifest.has_names = named != nullptr ? named->boolean("named_classes") : !numbers;
}

}  // namespace

Manifest Manifest::parse(const std::string& text, const std::string& where) {
  try {
    const Json json = Json::parse(text);
    Manifest manifest;
    const long format = json.at("format").integer("format", 0, 1000000);
    if (format != kFormat)
      throw Error(kData, "its format is " + std::to_string(format) + ", this program reads " + std::to_string(kFormat));
    manifest.preprocess = read_preprocess(json.at("preprocess"));
    const Json& model = json.at("model");
    manifest.variant = model.at("variant").string("model variant");
    const long classes = model.at("num_classes").integer("model num_classes", 1, kMaxClasses);
    if (model.at("image_size").integer("model image_size", 1, kMaxPixels) != manifest.preprocess.size)
      throw Error(kData, "model image_size is not the size of preprocess");
    for (const Json& name : json.at("classes").array("classes"))
      manifest.classes.push_back(name.string("a class name"));
    check_class_names(json, manifest);
    if (static_cast<long>(manifest.classes.size()) != classes)
      throw Error(kData, "there are " + std::to_string(manifest.classes.size()) + " class names for " +
                             std::to_string(classes) + " classes");
    if (const Json* digest = json.find("digest"); digest != nullptr) manifest.digest = digest->string("digest");
    return manifest;
  } catch (const Error& error) {
    throw Error(kData, where + " has a broken manifest: " + error.what());
  }
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream.is_open() || stream.bad()) throw Error(kData, "cannot read " + path + ": " + std::strerror(errno));
  return text;
}

std::string sidecar(const std::string& artefact) {
  std::error_code none;
  const std::string path = artefact + ".json";
  return std::filesystem::exists(path, none) ? read_file(path) : std::string();
}

}  // namespace resnext
