// An engine that is loaded, and a model that is open in it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "resnext_engine.h"

namespace resnext {

// What is compared before a model serves: its file with the digest of its manifest, and its golden logits.
enum class SelfCheck { kFull, kDigest, kOff };

struct SelfCheckResult {
  bool content = false;    // the file has the digest that its manifest states
  bool converted = false;  // another tool has made an INT8 or float16 file of it
  double difference = -1;  // of the golden logits, relative to the largest; below 0 where they were not computed
  std::string proven;      // where an artefact in few bits was compared with its proof of there; empty: with none
  std::string note;        // what could not be checked, and why; empty where all was
};

struct EngineRequest {
  std::string model, name, device = "cpu", runtime, precision, folder;
  int device_id = 0, threads = 0, batch = 1;
  SelfCheck self_check = SelfCheck::kFull;
};

class Model {
 public:
  // Opens a model with the engine that its ending, or `request.name`, says. Error(kUsage) for an engine or a device
  // that is not there, Error(kEngine) for one that cannot run here, Error(kData) for a model that is damaged, cannot be
  // served, or is computed wrongly here.
  explicit Model(const EngineRequest& request);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Manifest& manifest() const { return manifest_; }
  const std::string& manifest_text() const { return text_; }
  const std::string& engine() const { return name_; }
  std::string version() const;
  // What was compared with the manifest before serving.
  const SelfCheckResult& checked() const { return checked_; }
  // 0: any.
  int fixed_batch() const;
  int classes() const { return static_cast<int>(manifest_.classes.size()); }
  // Bytes of an image, uint8 (size, size, 3).
  size_t image_bytes() const;

  // Computes `n` images, uint8 (n, size, size, 3), to float32 (n, classes). Error(kEngine) when the engine fails.
  void logits(const uint8_t* images, int n, float* out);
  // The same for normalised float32 (n, 3, size, size); Error(kUsage) where normalisation is inside the artefact.
  void logits_from_tensor(const float* tensor, int n, float* out);

 private:
  void read_manifest(const EngineRequest& request);
  // Throws what an engine said: Error(kData) where it names the model's file, otherwise Error(kEngine).
  [[noreturn]] void fail(const std::string& error) const;
  // The size of the batch that `n` images, or the first of them, are computed in: one that the model takes.
  int padded_size(int n) const;
  void run(const void* rows, size_t row_bytes, int n, float* out);

  void* library_ = nullptr;
  const resnext_engine* engine_ = nullptr;
  resnext_model* model_ = nullptr;
  std::string path_, name_, text_;
  Manifest manifest_;
  SelfCheckResult checked_;
  std::vector<float> tensor_;
  std::vector<char> padded_;
  std::vector<float> padded_logits_;
};

// Names of the engines in `folder`.
std::vector<std::string> engines_in(const std::string& folder);

// The folder of this program.
std::string program_folder();

}  // namespace resnext
