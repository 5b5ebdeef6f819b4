#include "engine.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "error.h"
#include "preprocess.h"
#include "selfcheck.h"

namespace resnext {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "libresnext_engine_";
constexpr size_t kErrorSize = 1024;

// How to get the engine that an ending asks for.
std::string how_to_get(const std::string& name) {
  return name == "mslite" ? "build this program with MindSpore Lite: resnext-run cpp build --lite download"
                          : "rebuild this program";
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : text;
}

// The engine for an artefact by its ending.
std::string usual_engine(const std::string& model) {
  const std::string ending = fs::path(model).extension().string();
  if (ending == ".onnx") return "onnx";
  if (ending == ".om") return "acl";
  if (ending == ".mindir" || ending == ".ms") return "mslite";
  throw Error(kUsage,
              "no engine for '" + fs::path(model).filename().string() + "' by its ending; name one with --engine");
}

bool lists(const char* words, const std::string& word) {
  const std::string padded = " " + std::string(words) + " ";
  return padded.find(" " + word + " ") != std::string::npos;
}

}  // namespace

std::string program_folder() {
  std::error_code none;
  return fs::read_symlink("/proc/self/exe", none).parent_path().string();
}

std::vector<std::string> engines_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const std::string file = entry.path().filename().string();
    if (file.rfind(kPrefix, 0) == 0 && entry.path().extension() == ".so")
      names.push_back(file.substr(std::strlen(kPrefix), file.size() - std::strlen(kPrefix) - 3));
  }
  std::sort(names.begin(), names.end());
  return names;
}

Model::Model(const EngineRequest& request) {
  path_ = request.model;
  name_ = request.name.empty() ? usual_engine(request.model) : request.name;
  const std::string folder = request.folder.empty() ? program_folder() : request.folder;
  const auto known = engines_in(folder);
  const bool there = std::find(known.begin(), known.end(), name_) != known.end();
  if (!there && request.name.empty())
    throw Error(kEngine, "the engine '" + name_ + "', which serves " + fs::path(request.model).extension().string() +
                             " files, is not in " + folder + ": " + how_to_get(name_) +
                             "; available: " + joined(known));
  if (!there)
    throw Error(kUsage, "no engine '" + name_ + "' in " + folder + "; available: " + joined(known));
  std::error_code none;  // a loop of links is no model either
  if (name_ != "null" && !fs::is_regular_file(request.model, none))
    throw Error(kData, "no such model: " + request.model);
  const std::string path = folder + "/" + kPrefix + name_ + ".so";
  library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library_ == nullptr) {
    const std::string why = dlerror();
    throw Error(kEngine, "engine " + name_ + " cannot be loaded: " + why + "; " + how_to_get(name_));
  }
  const auto get = reinterpret_cast<resnext_engine_get_t>(dlsym(library_, "resnext_engine_get"));
  uint32_t own = 0;
  engine_ = get == nullptr ? nullptr : get(RESNEXT_ENGINE_ABI, &own);
  if (engine_ == nullptr)
    throw Error(kEngine, path + " has ABI " + std::to_string(own) + ", this program " +
                             std::to_string(RESNEXT_ENGINE_ABI) + "; build both from the same release");
  if (!lists(engine_->devices, request.device))
    throw Error(kUsage, "engine " + name_ + " does not support device '" + request.device +
                            "'; supported: " + engine_->devices);
  text_ = sidecar(request.model);
  if (name_ == "onnx" && request.self_check != SelfCheck::kOff) checked_ = check_content(request.model, text_);
  if (!text_.empty()) manifest_ = Manifest::parse(text_, request.model + ".json");
  if (name_ != "onnx" && name_ != "null" && request.self_check != SelfCheck::kOff)
    checked_ = check_file_digest(request.model, manifest_);
  resnext_request asked{};
  asked.path = request.model.c_str();
  asked.device = request.device.c_str();
  asked.device_id = request.device_id;
  asked.threads = request.threads;
  asked.runtime = request.runtime.c_str();
  asked.precision = request.precision.c_str();
  asked.batch = request.batch;
  asked.image_size = manifest_.preprocess.size;
  asked.classes = classes();
  char error[kErrorSize] = "";
  model_ = engine_->open(&asked, error, sizeof error);
  if (model_ == nullptr) {
    fail(error);
  }
  try {
    read_manifest(request);
    if (request.self_check == SelfCheck::kFull) check_golden(*this, request, checked_);
  } catch (...) {
    engine_->close(model_);
    throw;
  }
}

void Model::read_manifest(const EngineRequest& request) {
  const char* inside = engine_->manifest(model_);
  if (inside != nullptr) {
    text_ = inside;
    manifest_ = Manifest::parse(text_, request.model);
  }
  if (text_.empty())
    throw Error(kData, request.model + " has no manifest: not inside, and no file " + request.model + ".json");
}

Model::~Model() {
  if (model_ != nullptr) engine_->close(model_);
  // The library stays loaded: runtimes leave threads and exit handlers behind.
}

std::string Model::version() const { return engine_->version(model_); }
int Model::fixed_batch() const { return engine_->fixed_batch(model_); }

size_t Model::image_bytes() const {
  const auto size = static_cast<size_t>(manifest_.preprocess.size);
  return size * size * 3;
}

void Model::logits(const uint8_t* images, int n, float* out) {
  if (engine_->input(model_) == RESNEXT_IMAGES_UINT8) {
    run(images, image_bytes(), n, out);
    return;
  }
  tensor_.resize(static_cast<size_t>(n) * image_bytes());
  normalize(images, n, manifest_.preprocess, tensor_.data());
  run(tensor_.data(), image_bytes() * sizeof(float), n, out);
}

void Model::logits_from_tensor(const float* tensor, int n, float* out) {
  if (engine_->input(model_) != RESNEXT_TENSOR_FLOAT32)
    throw Error(kUsage, "this artefact has normalisation inside and cannot skip it; export it with export.input=float");
  run(tensor, image_bytes() * sizeof(float), n, out);
}

void Model::fail(const std::string& error) const {
  // An engine names the file, or the one with its manifest, where that is what it cannot take; AscendCL may name the
  // first in any error.
  const bool file = error.find(name_ == "acl" ? path_ + ".json" : path_) != std::string::npos;
  throw Error(file ? kData : kEngine, "engine " + name_ + ": " + error);
}

int Model::padded_size(int n) const {
  if (const int fixed = fixed_batch(); fixed > 0) return fixed;
  const std::vector<int>& sizes = manifest_.batch_sizes;
  if (sizes.empty()) return n;
  const auto found = std::lower_bound(sizes.begin(), sizes.end(), n);
  return found == sizes.end() ? sizes.back() : *found;
}

void Model::run(const void* rows, size_t row_bytes, int n, float* out) {
  char error[kErrorSize] = "";
  const auto width = static_cast<size_t>(classes());
  const auto* data = static_cast<const char*>(rows);
  for (int first = 0; first < n;) {
    const int step = padded_size(n - first), count = std::min(step, n - first);
    const char* from = data + static_cast<size_t>(first) * row_bytes;
    float* to = out + static_cast<size_t>(first) * width;
    if (count < step) {  // the artefact takes whole batches only
      padded_.assign(static_cast<size_t>(step) * row_bytes, 0);
      std::memcpy(padded_.data(), from, static_cast<size_t>(count) * row_bytes);
      padded_logits_.resize(static_cast<size_t>(step) * width);
      from = padded_.data();
      to = padded_logits_.data();
    }
    if (engine_->run(model_, from, step, to, static_cast<size_t>(step) * width, error, sizeof error) != 0)
      fail(error);
    if (to == padded_logits_.data())
      std::memcpy(out + static_cast<size_t>(first) * width, to, static_cast<size_t>(count) * width * sizeof(float));
    first += count;
  }
}

}  // namespace resnext
