#include "selfcheck.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "error.h"
#include "json.h"
#include "onnx_file.h"
#include "processor.h"
#include "protobuf.h"
#include "sha256.h"

namespace resnext {
namespace {

// As in resnext_core/serving/golden.py.
constexpr uint64_t kImageKey = 20261122;
constexpr double kTolerance = 1e-4, kToleranceHalf = 5e-2;
// As in resnext_core/serving/proof.py.
constexpr double kToleranceProof = 2e-2, kUnprovenInt8 = 0.15;
constexpr int kBlock = 6;

// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"), as numpy.random.Philox(key=...).
class Philox {
 public:
  explicit Philox(uint64_t key) : key_(key) {}

  uint64_t next() {
    if (at_ == out_.size()) {
      if (++counter_[0] == 0) ++counter_[1];
      fill();
      at_ = 0;
    }
    return out_[at_++];
  }

 private:
  static uint64_t high(uint64_t a, uint64_t b) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>(static_cast<Wide>(a) * b >> 64);
  }

  void fill() {
    constexpr uint64_t kM0 = 0xD2E7470EE14C6C93, kM1 = 0xCA5A826395121157;
    std::array<uint64_t, 2> key = {key_, 0};
    out_ = counter_;
    for (int round = 0; round < 10; ++round) {
      out_ = {high(kM1, out_[2]) ^ out_[1] ^ key[0], kM1 * out_[2], high(kM0, out_[0]) ^ out_[3] ^ key[1],
              kM0 * out_[0]};
      key[0] += 0x9E3779B97F4A7C15;
      key[1] += 0xBB67AE8584CAA73B;
    }
  }

  uint64_t key_;
  std::array<uint64_t, 4> counter_{}, out_{};
  size_t at_ = 4;
};

std::vector<uint8_t> random_bytes(uint64_t key, size_t count) {
  Philox generator(key);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator.next() >> 56);
  return bytes;
}

// The engine's arithmetic may have fewer bits than float32: on any accelerator but a CUDA one, where the user asks for
// a precision, and where another tool has converted the constants.
bool reduced(const EngineRequest& request, bool converted) {
  return converted || !request.precision.empty() || (request.device != "cpu" && request.device != "cuda");
}

// Where the engine computes, as the word by which the proofs of an artefact in few bits are looked up.
std::string place_of(const EngineRequest& request) {
  const std::string device = request.device == "cpu" ? instruction_set() : request.device;
  return request.precision.empty() ? device : device + "-" + request.precision;
}

// That an artefact in few bits is not proven at `place`, and how it is.
std::string unproven(const Manifest& manifest, const std::string& place, const std::string& model) {
  std::string names;
  for (const auto& [name, logits] : manifest.proofs) names += (names.empty() ? "" : ", ") + name;
  return model + ": " + manifest.precision + ", " + (names.empty() ? "not proven" : "proven on " + names + ", not") +
         " on " + place + "; to prove it here, run: resnext-run validate --artefact " + model + " --weights WEIGHTS";
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2g", value);
  return text;
}

}  // namespace

std::vector<uint8_t> synthetic_images(int count, int size) {
  const auto n = static_cast<size_t>(count), side = static_cast<size_t>(size);
  const size_t coarse = (side + kBlock - 1) / kBlock, row = side * 3, image = side * row;
  std::vector<uint8_t> pixels = random_bytes(kImageKey, n * image);
  const std::vector<uint8_t> blocks = random_bytes(kImageKey + 1, n * coarse * coarse * 3);
  for (size_t i = 0; i < n; ++i) {
    for (size_t p = 0; p < image; ++p) {
      const size_t y = p / row, x = p % row / 3, c = p % 3;
      const size_t block = ((i * coarse + y / kBlock) * coarse + x / kBlock) * 3 + c;
      uint8_t& value = pixels[i * image + p];
      value = static_cast<uint8_t>((value >> 1) + (blocks[block] >> 1));
      if (i == 1) value = static_cast<uint8_t>(value >> 1);
      if (i == 2) value = static_cast<uint8_t>(value | 128);
    }
  }
  if (!pixels.empty()) {  // the ends of the range
    pixels[0] = pixels[2] = 0;
    pixels[1] = 255;
  }
  return pixels;
}

SelfCheckResult check_content(const std::string& path, const std::string& beside) {
  const OnnxFile file = read_onnx(path);
  const std::string& text = file.manifest.empty() ? beside : file.manifest;
  SelfCheckResult result;
  if (text.empty()) return result;  // the engine says what is wrong with it
  const Manifest manifest = Manifest::parse(text, file.manifest.empty() ? path + ".json" : path);
  if (manifest.content.empty()) {
    result.note = path + " has no digest of its graph and was not checked for damage; export it again";
  } else if (file.readable && manifest.content == file.content) {
    result.content = true;
  } else if (file.readable && file.converted) {
    result.converted = true;
    result.note = path + " was converted by another tool and was not checked for damage";
  } else {
    throw Error(kData, path + " is damaged, or another tool changed it: its graph does not have the digest of its " +
                           "manifest; export it again (--self-check off serves it as it is)");
  }
  return result;
}

SelfCheckResult check_file_digest(const std::string& path, const Manifest& manifest) {
  SelfCheckResult result;
  if (manifest.file_digest.empty()) return result;
  Sha256 digest;
  digest.update(MappedFile(path).bytes());
  result.content = "sha256:" + digest.hex() == manifest.file_digest;
  if (!result.content)
    throw Error(kData, path + " is damaged, or not the file that " + path +
                           ".json describes: it does not have the digest of its manifest; export it again " +
                           "(--self-check off serves it as it is)");
  return result;
}

void check_golden(Model& model, const EngineRequest& request, SelfCheckResult& result) {
  const Manifest& manifest = model.manifest();
  if (model.engine() == "null") return;  // it computes no network
  if (manifest.golden.empty()) {
    result.note += (result.note.empty() ? request.model : std::string("; it")) +
                   " has no golden logits: its results on this machine were not checked";
    return;
  }
  const std::string place = place_of(request);
  const auto proof = result.converted ? manifest.proofs.end() : manifest.proofs.find(place);
  const bool proven = proof != manifest.proofs.end();
  const std::vector<double>& expected = proven ? proof->second : manifest.golden;
  const auto classes = static_cast<size_t>(model.classes());
  const int count = static_cast<int>(expected.size() / classes);
  const std::vector<uint8_t> images = synthetic_images(count, manifest.preprocess.size);
  std::vector<float> logits(expected.size());
  model.logits(images.data(), count, logits.data());
  double most = 1e-30, off = 0;
  bool finite = true;
  for (size_t i = 0; i < logits.size(); ++i) {
    most = std::max(most, std::abs(expected[i]));
    finite = finite && std::isfinite(logits[i]);
    off = std::max(off, std::abs(static_cast<double>(logits[i]) - expected[i]));
  }
  const bool exact = manifest.golden_compute == "float32" || manifest.golden_compute == "float64";
  const double loose = exact && !reduced(request, result.converted) ? kTolerance : kToleranceHalf;
  const double unproven_allowed = manifest.precision == "int8" ? kUnprovenInt8 : loose;
  const double allowed = proven ? kToleranceProof : unproven_allowed;
  const std::string what = proven ? "the logits of its proof on " + place : "its golden logits";
  result.difference = off / most;
  if (!finite || !(result.difference <= allowed))
    throw Error(kData, request.model + " gives wrong results on this machine: " + what + " are " +
                           (finite ? "off by " + short_number(result.difference) + " of the largest" : "not finite") +
                           " (allowed " + short_number(allowed) +
                           "); do not use it here (--self-check off skips this check)");
  if (proven) result.proven = place;
  if (!proven && !manifest.precision.empty())
    result.note += (result.note.empty() ? "" : "; ") + unproven(manifest, place, request.model);
}

}  // namespace resnext
