#include "manifest.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace resnext {
namespace {

// Format of the manifest, resnext_core/model/weights.py.
constexpr long kFormat = 1;
constexpr long kMaxPixels = 8192, kMaxClasses = 1000000, kMaxWidth = 4096, kMaxDepth = 512, kMaxStages = 8;
constexpr long kMaxGolden = 8, kMaxProofs = 32, kMaxProofImages = 1000000000;
constexpr long kMaxBatch = 65536, kMaxBatchSizes = 100;  // the latter is ATC's limit
// The last field of a manifest that has its own digest: that of the text before it.
constexpr std::string_view kSeal = ", \"manifest_sha256\": \"";
constexpr size_t kHex = 64;
// Bytes of a manifest beside an artefact; one of a million classes is smaller.
constexpr std::uintmax_t kMaxManifest = std::uintmax_t{256} << 20;

template <typename T>
T one_of(const Json& value, const std::string& what, std::initializer_list<std::pair<const char*, T>> choices) {
  const std::string& text = value.string(what);
  std::string names;
  for (const auto& [name, choice] : choices) {
    if (text == name) return choice;
    names += (names.empty() ? "" : " or ") + std::string(name);
  }
  throw Error(kData, what + " must be " + names + ", not '" + text + "'");
}

const Json& object(const Json& value, const std::string& what) {
  if (!value.is(Json::Kind::kObject)) throw Error(kData, what + " must be an object");
  return value;
}

std::array<float, 3> three(const Json& value, const std::string& what, double low, double high) {
  const auto& items = value.array(what);
  if (items.size() != 3) throw Error(kData, what + " must be three numbers");
  std::array<float, 3> out{};
  for (size_t i = 0; i < 3; ++i) {
    const double number = items[i].number(what);
    if (!(number >= low && number <= high))
      throw Error(kData, what + " must be " + (low > 0 ? "above 0, and " : "") + "from " + json_number(low) + " to " +
                             json_number(high));
    out[i] = static_cast<float>(number);
  }
  return out;
}

Preprocess read_preprocess(const Json& json) {
  json.exactly("preprocess", {"size", "resize", "mode", "filter", "mean", "std", "scaled_decode", "color_order"},
               {"orientation"});
  Preprocess p;
  p.size = static_cast<int>(json.at("size").integer("preprocess size", 1, kMaxPixels));
  p.resize = static_cast<int>(json.at("resize").integer("preprocess resize", 1, kMaxPixels));
  p.mode = one_of<Preprocess::Mode>(json.at("mode"), "preprocess mode",
                                    {{"shorter-side", Preprocess::Mode::kShorterSide},
                                     {"squash", Preprocess::Mode::kSquash}});
  p.filter = one_of<Preprocess::Filter>(json.at("filter"), "preprocess filter",
                                        {{"antialias", Preprocess::Filter::kAntialias},
                                         {"bicubic", Preprocess::Filter::kBicubic},
                                         {"plain", Preprocess::Filter::kPlain}});
  p.mean = three(json.at("mean"), "preprocess mean", -1e6, 1e6);
  p.std = three(json.at("std"), "preprocess std", 1e-6, 1e6);
  p.scaled_decode = json.at("scaled_decode").boolean("preprocess scaled_decode");
  if (json.at("color_order").string("preprocess color_order") != "RGB")
    throw Error(kData, "preprocess color_order must be RGB");
  if (const Json* orientation = json.find("orientation"); orientation != nullptr)
    p.oriented = one_of<bool>(*orientation, "preprocess orientation", {{"ignore", false}, {"apply", true}});
  if (p.resize < p.size) throw Error(kData, "preprocess resize is below its size");
  return p;
}

// No two classes have one name; where the manifest does not say whether they are names, 0, 1, ... are none.
void read_classes(const Json& json, Manifest& manifest) {
  std::unordered_map<std::string, size_t> seen;
  bool numbers = true;
  for (const Json& item : json.at("classes").array("classes")) {
    const std::string& name = item.string("a class name");
    const size_t position = manifest.classes.size();
    if (name.empty()) throw Error(kData, "class " + std::to_string(position) + " has an empty name");
    const auto [other, added] = seen.emplace(name, position);
    if (!added)
      throw Error(kData, "the class name " + name + " is that of class " + std::to_string(other->second) +
                             " and of class " + std::to_string(position));
    numbers = numbers && name == std::to_string(position);
    manifest.classes.push_back(name);
  }
  const Json* named = json.find("named_classes");
  manifest.has_names = named == nullptr || named->is(Json::Kind::kNull) ? !numbers : named->boolean("named_classes");
}

// Checks what this program does not use too: a manifest that is damaged anywhere is not served.
void read_model(const Json& json, Manifest& manifest) {
  json.exactly("model", {"variant", "depths", "groups", "base_width", "stem", "stem_width", "pool_padding",
                         "num_classes", "image_size"});
  manifest.variant = json.at("variant").string("model variant");
  const auto& depths = json.at("depths").array("model depths");
  if (depths.empty() || depths.size() > kMaxStages) throw Error(kData, "model depths must be 1 to 8 integers");
  for (const Json& depth : depths) depth.integer("a model depth", 1, kMaxDepth);
  json.at("groups").integer("model groups", 1, kMaxWidth);
  const long width = json.at("base_width").integer("model base_width", 1, kMaxWidth);
  const long stem = json.at("stem_width").integer("model stem_width", 1, kMaxWidth);
  if (stem * width < 64) throw Error(kData, "model base_width gives an empty group at its stem_width");
  one_of<int>(json.at("stem"), "model stem", {{"imagenet", 0}, {"cifar", 0}});
  one_of<int>(json.at("pool_padding"), "model pool_padding", {{"same", 0}, {"symmetric", 0}});
  const long classes = json.at("num_classes").integer("model num_classes", 1, kMaxClasses);
  if (static_cast<long>(manifest.classes.size()) != classes)
    throw Error(kData, "there are " + std::to_string(manifest.classes.size()) + " class names for " +
                           std::to_string(classes) + " classes");
  if (json.at("image_size").integer("model image_size", 1, kMaxPixels) != manifest.preprocess.size)
    throw Error(kData, "model image_size is not the size of preprocess");
}

// Logits (images, classes).
std::vector<double> read_logits(const Json& json, const std::string& what, size_t classes) {
  const auto& rows = json.array(what);
  if (rows.empty() || rows.size() > kMaxGolden) throw Error(kData, what + " must be 1 to 8 rows");
  std::vector<double> logits;
  for (const Json& row : rows) {
    const auto& values = row.array("a row of " + what);
    if (values.size() != classes) throw Error(kData, what + " must have one number per class");
    for (const Json& value : values) logits.push_back(value.number("one of the " + what));
  }
  return logits;
}

void read_golden(const Json& json, Manifest& manifest) {
  json.exactly("golden", {"compute", "logits"});
  manifest.golden_compute = json.at("compute").string("golden compute");
  manifest.golden = read_logits(json.at("logits"), "golden logits", manifest.classes.size());
}

std::vector<double> read_proof(const Json& json, size_t classes) {
  object(json, "a proof").exactly("a proof", {"logits", "images", "top1_agreement"}, {"top1", "top1_source"});
  json.at("images").integer("images of a proof", 1, kMaxProofImages);
  if ((json.find("top1") == nullptr) != (json.find("top1_source") == nullptr))
    throw Error(kData, "a proof has top1 and top1_source, or none of them");
  for (const char* key : {"top1_agreement", "top1", "top1_source"}) {
    const Json* value = json.find(key);
    const double share = value == nullptr ? 0 : value->number(key);
    if (!(share >= 0 && share <= 1)) throw Error(kData, std::string(key) + " of a proof must be from 0 to 1");
  }
  return read_logits(json.at("logits"), "logits of a proof", classes);
}

// A word that stands for an instruction set: resnext_core/processor.py has them.
bool is_instruction_set(const std::string& name) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= 40 && plain(name[0]) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return plain(c) || c == '_' || c == '.' || c == '-'; });
}

// What an artefact computes in, and what it was found to compute where.
void read_precision(const Json& artefact, Manifest& manifest) {
  const Json* compute = artefact.find("compute");
  const Json* proofs = artefact.find("proofs");
  if (compute == nullptr) {
    if (proofs != nullptr) throw Error(kData, "artefact has proofs and no compute");
    return;
  }
  manifest.precision = one_of<const char*>(
      *compute, "artefact compute", {{"int8", "int8"}, {"float16", "float16"}, {"bfloat16", "bfloat16"}});
  if (manifest.golden.empty() || manifest.golden_compute != manifest.precision)
    throw Error(kData, "an artefact in " + manifest.precision + " must have golden logits in " + manifest.precision);
  if (proofs == nullptr) return;
  const auto& members = object(*proofs, "artefact proofs").members();
  if (members.size() > kMaxProofs) throw Error(kData, "artefact proofs must be at most 32");
  for (const auto& [name, proof] : members) {
    if (!is_instruction_set(name)) throw Error(kData, "'" + name + "' is not the name of an instruction set");
    manifest.proofs[name] = read_proof(proof, manifest.classes.size());
  }
}

void check_digest(const std::string& text, const std::string& what);

// What a manifest notes of the artefact that it is in, or beside.
void read_artefact(const Json& json, const Json& artefact, Manifest& manifest) {
  if (const Json* content = artefact.find("content"); content != nullptr) {
    manifest.content = content->string("artefact content");
    check_digest(manifest.content, "artefact content");
    json.at("manifest_sha256");  // whoever writes the one writes the other
  }
  if (const Json* digest = artefact.find("file_digest"); digest != nullptr) {
    manifest.file_digest = digest->string("artefact file_digest");
    check_digest(manifest.file_digest, "artefact file_digest");
  }
  read_precision(artefact, manifest);
  const Json* sizes = artefact.find("batch_sizes");
  if (sizes == nullptr || sizes->is(Json::Kind::kNull)) return;
  for (const Json& size : sizes->array("artefact batch_sizes"))
    manifest.batch_sizes.push_back(static_cast<int>(size.integer("a size of artefact batch_sizes", 1, kMaxBatch)));
  if (manifest.batch_sizes.empty() || manifest.batch_sizes.size() > kMaxBatchSizes)
    throw Error(kData, "artefact batch_sizes must be 1 to " + std::to_string(kMaxBatchSizes) + " integers");
  std::sort(manifest.batch_sizes.begin(), manifest.batch_sizes.end());
}

void check_digest(const std::string& text, const std::string& what) {
  const size_t start = text.rfind("sha256:", 0) == 0 ? 7 : std::string::npos;
  if (start == std::string::npos || text.size() != start + kHex ||
      text.find_first_not_of("0123456789abcdef", start) != std::string::npos)
    throw Error(kData, what + " must be sha256: and 64 hexadecimal digits");
}

// Compares a manifest that states its own digest with it.
void check_seal(const std::string& text, const Json& json, const std::string& where) {
  const Json* seal = json.find("manifest_sha256");
  if (seal == nullptr) return;
  constexpr const char* kBlanks = " \t\r\n";
  const size_t start = text.find_first_not_of(kBlanks), end = text.find_last_not_of(kBlanks) + 1;
  const size_t length = kSeal.size() + kHex + 2;
  bool whole = seal->is(Json::Kind::kString) && end - start > length &&
               text.compare(end - length, kSeal.size(), kSeal) == 0;
  if (whole) {
    Sha256 digest;
    digest.update(std::string_view(text).substr(start, end - length - start));
    digest.update("}");
    whole = digest.hex() == seal->string("manifest_sha256");
  }
  if (!whole) throw Error(kData, where + " is damaged: checksum mismatch of its manifest");
}

}  // namespace

Manifest Manifest::parse(const std::string& text, const std::string& where) {
  try {
    const Json json = Json::parse(text);
    object(json, "it");
    check_seal(text, json, where);
    Manifest manifest;
    const long format = json.at("format").integer("format", 0, 1000000);
    if (format != kFormat)
      throw Error(kData, "its format is " + std::to_string(format) + ", this program reads " + std::to_string(kFormat));
    manifest.preprocess = read_preprocess(object(json.at("preprocess"), "preprocess"));
    read_classes(json, manifest);
    read_model(object(json.at("model"), "model"), manifest);
    manifest.digest = json.at("digest").string("digest");
    check_digest(manifest.digest, "digest");
    for (const char* key : {"origin", "metrics"}) object(json.at(key), key);
    if (const Json* golden = json.find("golden"); golden != nullptr) read_golden(object(*golden, "golden"), manifest);
    if (const Json* artefact = json.find("artefact"); artefact != nullptr)
      read_artefact(json, object(*artefact, "artefact"), manifest);
    return manifest;
  } catch (const Error& error) {
    const std::string text_of = error.what();
    if (text_of.rfind(where + " is damaged", 0) == 0) throw;
    throw Error(kData, where + " has a broken manifest: " + text_of);
  }
}

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream.is_open() || stream.bad()) throw Error(kData, "cannot read " + path + ": " + std::strerror(errno));
  return text;
}

std::string sidecar(const std::string& artefact) {
  const std::filesystem::path path = artefact + ".json";
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) return "";
  if (!std::filesystem::is_regular_file(status)) throw Error(kData, path.string() + " is not a regular file");
  if (std::filesystem::file_size(path, error) > kMaxManifest) throw Error(kData, path.string() + " is too large");
  return read_file(path.string());
}

}  // namespace resnext
