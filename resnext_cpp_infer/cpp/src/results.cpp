#include "results.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "error.h"
#include "json.h"

namespace resnext {
namespace {

std::vector<double> softmax(const float* logits, size_t classes) {
  const double most = *std::max_element(logits, logits + classes);
  std::vector<double> shares(classes);
  double sum = 0;
  for (size_t c = 0; c < classes; ++c) sum += shares[c] = std::exp(static_cast<double>(logits[c]) - most);
  for (double& share : shares) share /= sum;
  return shares;
}

std::string six_digits(double share) { return json_number(std::round(share * 1e6) / 1e6); }

std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string label_text(const Sample& sample) { return sample.label < 0 ? "" : std::to_string(sample.label); }

std::string make_folder(const std::string& folder, const char* name) {
  const std::string path = folder + "/" + name;
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw Error(kData, "cannot create " + path + ": " + error.message());
  return path;
}

void write_file(const std::string& path, const void* data, size_t bytes) {
  OutputFile file(path, false);  // one of many
  file.write(data, bytes);
  file.finish();
}

}  // namespace

ResultWriter::ResultWriter(const std::string& path, bool csv, int top, const std::vector<std::string>& classes)
    : file_(path.empty() ? nullptr : std::make_unique<OutputFile>(path)),
      csv_(csv),
      top_(std::min(static_cast<size_t>(top), classes.size())),
      classes_(classes) {
  if (!csv_) return;
  std::string head = "path,label,error";
  for (size_t k = 1; k <= top_; ++k)
    head += ",id" + std::to_string(k) + ",name" + std::to_string(k) + ",probability" + std::to_string(k);
  line(head);
}

void ResultWriter::scored(const Sample& sample, const float* logits) {
  const std::vector<double> shares = softmax(logits, classes_.size());
  std::string text =
      csv_ ? csv_cell(sample.path) + "," + label_text(sample) + "," : "{\"path\": " + json_string(sample.path);
  if (!csv_) text += (sample.label < 0 ? "" : ", \"label\": " + label_text(sample)) + ", \"top\": [";
  bool first = true;
  for (const int id : top_k(logits, classes_.size(), top_)) {
    const std::string& name = classes_[static_cast<size_t>(id)];
    const std::string share = six_digits(shares[static_cast<size_t>(id)]);
    if (csv_)
      text += "," + std::to_string(id) + "," + csv_cell(name) + "," + share;
    else
      text += (first ? "" : ", ") + ("{\"id\": " + std::to_string(id)) + ", \"name\": " + json_string(name) +
              ", \"probability\": " + share + "}";
    first = false;
  }
  line(csv_ ? text : text + "]}");
}

void ResultWriter::failed(const Sample& sample, const std::string& reason) {
  if (csv_) {
    line(csv_cell(sample.path) + "," + label_text(sample) + "," + csv_cell(reason) + std::string(3 * top_, ','));
    return;
  }
  line("{\"path\": " + json_string(sample.path) + (sample.label < 0 ? "" : ", \"label\": " + label_text(sample)) +
       ", \"error\": " + json_string(reason) + "}");
}

void ResultWriter::line(const std::string& text) {
  const std::string whole = text + "\n";
  if (file_ != nullptr)
    file_->write(whole.data(), whole.size());
  else if (std::fwrite(whole.data(), 1, whole.size(), stdout) != whole.size())
    finish_standard_output();
}

void ResultWriter::finish() {
  if (file_ != nullptr)
    file_->finish();
  else
    finish_standard_output();
}

std::vector<int> top_k(const float* logits, size_t classes, size_t k) {
  std::vector<int> order(classes);
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  std::partial_sort(order.begin(), order.begin() + static_cast<long>(k), order.end(), before);
  order.resize(k);
  return order;
}

void write_modelzoo_logits(const std::string& folder, const Sample& sample, const float* logits, size_t classes) {
  const std::string name = std::filesystem::path(sample.path).stem().string() + "_0.bin";
  write_file(make_folder(folder, "result_Files") + "/" + name, logits, classes * sizeof(float));
}

void write_modelzoo_time(const std::string& folder, double mean_ms, size_t count) {
  char text[160];
  const int length =
      std::snprintf(text, sizeof text, "NN inference cost average time: %g ms of infer_count %zu \n", mean_ms, count);
  write_file(make_folder(folder, "time_Result") + "/test_perform_static.txt", text, static_cast<size_t>(length));
}

}  // namespace resnext
