// Counts of a run and what is said of them, in words and as JSON.
#pragma once

#include <string>

#include "engine.h"
#include "pipeline.h"

namespace resnext {

struct Counts {
  size_t expected = 0, scored = 0, failed = 0, correct1 = 0, correct5 = 0;
  bool labelled = false;
};

// Wilson's 95 % interval of correct / total.
struct Interval {
  double low, high;
};
Interval wilson(size_t correct, size_t total);

std::string summary_json(const Counts& counts, const Timings& timings, const Model& model, const EngineRequest& request,
                         size_t batch, size_t workers);
// One line for people.
std::string summary_line(const Counts& counts, const Timings& timings);
double mean(const std::vector<float>& values);

}  // namespace resnext
