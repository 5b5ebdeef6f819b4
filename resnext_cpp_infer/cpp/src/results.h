// A line for each image, JSON or CSV, in a file or on standard output.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataset.h"
#include "files.h"

namespace resnext {

class ResultWriter {
 public:
  // `path` empty is standard output.
  ResultWriter(const std::string& path, bool csv, int top, const std::vector<std::string>& classes);
  void scored(const Sample& sample, const float* logits);
  void failed(const Sample& sample, const std::string& reason);
  void finish();

 private:
  void line(const std::string& text);

  std::unique_ptr<OutputFile> file_;  // none: standard output
  bool csv_;
  size_t top_;
  const std::vector<std::string>& classes_;
};

// Positions of the `k` largest logits, the largest first; of equal ones the lower position.
std::vector<int> top_k(const float* logits, size_t classes, size_t k);

// The ModelZoo's files: <folder>/result_Files/<image>_0.bin, raw float32 logits.
void write_modelzoo_logits(const std::string& folder, const Sample& sample, const float* logits, size_t classes);
// ... and <folder>/time_Result/test_perform_static.txt.
void write_modelzoo_time(const std::string& folder, double mean_ms, size_t count);

}  // namespace resnext
