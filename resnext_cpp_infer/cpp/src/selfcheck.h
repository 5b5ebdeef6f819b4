// Is the artefact whole, and does it compute here what it was saved with? See resnext_core/serving/golden.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"

namespace resnext {

// Compares an ONNX file with its manifest, or with `beside`, the text of a manifest for a file without one; before an
// engine opens it. Error(kData) where it is damaged.
SelfCheckResult check_content(const std::string& path, const std::string& beside);

// Compares any other file with the digest in the manifest beside it, where it states one. Error(kData) where they do
// not belong together.
SelfCheckResult check_file_digest(const std::string& path, const Manifest& manifest);

// Computes the golden logits. Error(kData) where they are further apart than rounding explains.
void check_golden(Model& model, const EngineRequest& request, SelfCheckResult& result);

// uint8 (count, size, size, 3): the synthetic images of resnext_core.serving.golden, bit for bit.
std::vector<uint8_t> synthetic_images(int count, int size);

}  // namespace resnext
