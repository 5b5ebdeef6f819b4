#include "summary.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "json.h"

namespace resnext {
namespace {

// The value at `share` of the sorted ones, the nearest rank.
double percentile(const std::vector<float>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::min(std::max(rank, size_t{1}), sorted.size()) - 1];
}

std::string latency(std::vector<float> values) {
  if (values.empty()) return "null";
  std::sort(values.begin(), values.end());
  return "{\"mean\": " + json_number(mean(values)) + ", \"p50\": " + json_number(percentile(values, 0.5)) +
         ", \"p90\": " + json_number(percentile(values, 0.9)) + ", \"p99\": " + json_number(percentile(values, 0.99)) +
         "}";
}

double share(size_t part, size_t whole) { return static_cast<double>(part) / static_cast<double>(whole); }

}  // namespace

double mean(const std::vector<float>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

Interval wilson(size_t correct, size_t total) {
  if (total == 0) return {0, 1};
  constexpr double z = 1.959964;
  const double n = static_cast<double>(total), p = share(correct, total);
  const double centre = p + z * z / (2 * n), spread = z * std::sqrt((p * (1 - p) + z * z / (4 * n)) / n);
  const double scale = 1 + z * z / n;
  return {correct == 0 ? 0 : std::max((centre - spread) / scale, 0.0),
          correct == total ? 1 : std::min((centre + spread) / scale, 1.0)};
}

std::string summary_json(const Counts& counts, const Timings& timings, const Model& model, const EngineRequest& request,
                         size_t batch, size_t workers) {
  const auto count = [](const char* name, size_t value) {
    return std::string("\"") + name + "\": " + std::to_string(value);
  };
  std::string text = "{" + count("expected", counts.expected) + ", " + count("scored", counts.scored) + ", " +
                     count("failed", counts.failed);
  if (counts.labelled) {
    const Interval interval = wilson(counts.correct1, counts.expected);
    text += ", " + count("correct1", counts.correct1) + ", " + count("correct5", counts.correct5) +
            ", \"top1\": " + json_number(share(counts.correct1, counts.expected)) +
            ", \"top5\": " + json_number(share(counts.correct5, counts.expected)) + ", \"top1_interval\": [" +
            json_number(interval.low) + ", " + json_number(interval.high) + "]";
  }
  text += ", \"seconds\": " + json_number(timings.seconds) +
          ", \"images_per_s\": " + json_number(static_cast<double>(counts.expected) / timings.seconds) +
          ", \"latency_ms\": {\"preprocess\": " + latency(timings.preprocess) +
          ", \"engine\": " + latency(timings.engine) + ", \"whole\": " + latency(timings.whole) + "}, " +
          count("batch", batch) + ", " + count("workers", workers) + ", \"engine\": " + json_string(model.engine()) +
          ", \"device\": " + json_string(request.device) + ", \"runtime\": " + json_string(model.version()) +
          ", \"program\": " + json_string(RESNEXT_INFER_VERSION) + ", \"model\": " + json_string(request.model) +
          ", \"variant\": " + json_string(model.manifest().variant) +
          ", \"digest\": " + json_string(model.manifest().digest) +
          ", \"self_check\": {\"content\": " + (model.checked().content ? "true" : "false") + ", \"golden\": " +
          (model.checked().difference < 0 ? "null" : json_number(model.checked().difference));
  const std::string& precision = model.manifest().precision;
  if (precision.empty()) return text + "}}\n";
  return text + ", \"proven\": " + (model.checked().proven.empty() ? "null" : json_string(model.checked().proven)) +
         "}, \"precision\": " + json_string(precision) + "}\n";
}

std::string summary_line(const Counts& counts, const Timings& timings) {
  char text[256];
  std::string line;
  if (counts.labelled) {
    const Interval interval = wilson(counts.correct1, counts.expected);
    std::snprintf(text, sizeof text, "top-1 %.2f %% (95 %% interval %.2f to %.2f), top-5 %.2f %%, ",
                  100 * share(counts.correct1, counts.expected), 100 * interval.low, 100 * interval.high,
                  100 * share(counts.correct5, counts.expected));
    line = text;
  }
  std::snprintf(text, sizeof text, "%zu of %zu images", counts.scored, counts.expected);
  line += text;
  if (counts.failed > 0) line += ", " + std::to_string(counts.failed) + " could not be read";
  std::snprintf(text, sizeof text, "; %.1f images/s in %.2f s", static_cast<double>(counts.expected) / timings.seconds,
                timings.seconds);
  return line + text;
}

}  // namespace resnext
