// resnext-infer: from a folder of images and an artefact to predictions and accuracy.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <thread>
#include <utility>

#include "args.h"
#include "dataset.h"
#include "error.h"
#include "files.h"
#include "npy.h"
#include "pipeline.h"
#include "results.h"
#include "stop.h"
#include "stream.h"
#include "summary.h"

namespace resnext {
namespace {

void warm_up(Model& model, size_t batch, int calls) {
  const std::vector<uint8_t> images(batch * model.image_bytes());
  std::vector<float> logits(batch * static_cast<size_t>(model.classes()));
  for (int i = 0; i < calls; ++i) model.logits(images.data(), static_cast<int>(batch), logits.data());
}

// Shows how far it is, on a terminal, a few times a second.
class Progress {
 public:
  Progress(size_t total, bool wanted) : total_(total), shown_(wanted && isatty(STDERR_FILENO) != 0) {}
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void operator()(size_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (!shown_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    const double seconds = std::chrono::duration<double>(now - started_).count();
    std::fprintf(stderr, "\r%zu of %zu images, %.0f images/s", done, total_, static_cast<double>(done) / seconds);
    std::fflush(stderr);
  }

 private:
  size_t total_;
  bool shown_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now(), last_ = started_;
};

// Writes and counts the images of a batch.
class Sink {
 public:
  Sink(const Args& args, const Dataset& data, const Model& model)
      : args_(args),
        data_(data),
        classes_(static_cast<size_t>(model.classes())),
        image_bytes_(model.image_bytes()),
        writer_(args.output, args.format == "csv", args.top, model.manifest().classes) {
    const auto size = static_cast<size_t>(model.manifest().preprocess.size);
    if (!args.logits.empty())
      logits_ = std::make_unique<NpyWriter>(args.logits, "<f4", data.samples.size(), std::vector<size_t>{classes_});
    if (!args.pixels.empty())
      pixels_ =
          std::make_unique<NpyWriter>(args.pixels, "|u1", data.samples.size(), std::vector<size_t>{size, size, 3});
    counts.expected = data.samples.size();
    counts.labelled = data.labelled;
  }

  void operator()(const BatchResult& batch) {
    const std::vector<float> none(classes_, std::numeric_limits<float>::quiet_NaN());
    for (size_t row = 0; row < batch.count; ++row) {
      const Sample& sample = data_.samples[batch.first + row];
      const float* logits = batch.logits + row * classes_;
      if (batch.errors[row].empty()) {
        score(sample, logits);
      } else {
        ++counts.failed;
        writer_.failed(sample, batch.errors[row]);
        logits = none.data();
      }
      if (logits_ != nullptr) logits_->write(logits, classes_ * sizeof(float));
      if (pixels_ != nullptr) pixels_->write(batch.pixels + row * image_bytes_, image_bytes_);
    }
  }

  void finish() {
    writer_.finish();
    if (logits_ != nullptr) logits_->finish();
    if (pixels_ != nullptr) pixels_->finish();
  }

  Counts counts;

 private:
  void score(const Sample& sample, const float* logits) {
    if (!std::all_of(logits, logits + classes_, [](float x) { return std::isfinite(x); }))
      throw Error(kData, "the model's logits are not finite for " + sample.path);
    ++counts.scored;
    if (sample.label >= 0) {
      const auto best = top_k(logits, classes_, std::min(classes_, size_t{5}));
      counts.correct1 += best.front() == sample.label ? 1 : 0;
      counts.correct5 += std::count(best.begin(), best.end(), sample.label) > 0 ? 1 : 0;
    }
    writer_.scored(sample, logits);
    if (!args_.modelzoo_layout.empty()) write_modelzoo_logits(args_.modelzoo_layout, sample, logits, classes_);
  }

  const Args& args_;
  const Dataset& data_;
  size_t classes_, image_bytes_;
  ResultWriter writer_;
  std::unique_ptr<NpyWriter> logits_, pixels_;
};

void write_summary(const std::string& path, const std::string& json) {
  OutputFile file(path);
  file.write(json.data(), json.size());
  file.finish();
}

// Two flags that name one file, or one that is read: refused before anything is written.
void check_outputs(const Args& args) {
  const std::pair<const char*, const std::string&> outputs[] = {
      {"--output", args.output}, {"--summary", args.summary}, {"--logits", args.logits}, {"--pixels", args.pixels}};
  std::map<std::string, std::string> taken;
  for (const std::string& read : {args.engine.model, args.engine.model + ".json", args.data, args.labels}) {
    std::error_code none;
    if (std::filesystem::is_regular_file(read, none)) taken.emplace(output_identity(read), read + ", which is read");
  }
  for (const auto& [flag, path] : outputs) {
    const std::string identity = path.empty() ? "" : output_identity(path);
    if (identity.empty()) continue;
    const auto [found, fresh] = taken.emplace(identity, flag);
    if (!fresh) throw Error(kUsage, std::string(flag) + " " + path + " is the file of " + found->second);
  }
}

int infer(Args& args) {
  args.engine.batch = args.batch > 0 ? args.batch : 8;
  if (args.print_manifest) args.engine.self_check = std::max(args.engine.self_check, SelfCheck::kDigest);
  check_outputs(args);
  Model model(args.engine);
  if (args.print_manifest) {
    std::puts(model.manifest_text().c_str());
    finish_standard_output();
    return kDone;
  }
  if (args.stream) {
    serve_stream(model, STDIN_FILENO, STDOUT_FILENO);
    return kDone;
  }
  const int natural = model.fixed_batch() > 0 ? model.fixed_batch() : args.engine.batch;
  const auto batch = static_cast<size_t>(args.batch > 0 ? args.batch : natural);
  const unsigned cores = std::max(std::thread::hardware_concurrency(), 1U);
  const auto workers = static_cast<size_t>(args.workers > 0 ? args.workers : static_cast<int>(cores));
  const Dataset data =
      open_dataset(args.data, args.labels, model.manifest().classes, model.manifest().has_names);
  for (const std::string& line : data.remarks) std::fprintf(stderr, "%s\n", printable(line).c_str());
  Sink sink(args, data, model);
  Timings timings;
  {
    Progress progress(data.samples.size(), !args.quiet);
    warm_up(model, batch, args.warmup);
    timings = run_pipeline(data.samples, model, batch, workers, stop_requested(), [&](const BatchResult& result) {
      sink(result);
      progress(result.first + result.count);
    });
  }
  sink.finish();
  const Counts& counts = sink.counts;
  if (counts.scored + counts.failed != counts.expected) throw std::logic_error("the counts do not add up");
  if (!args.modelzoo_layout.empty())
    write_modelzoo_time(args.modelzoo_layout, mean(timings.engine) / static_cast<double>(batch), counts.scored);
  if (!args.summary.empty())
    write_summary(args.summary, summary_json(counts, timings, model, args.engine, batch, workers));
  if (!model.checked().note.empty())
    std::fprintf(stderr, "resnext-infer: note: %s\n", printable(model.checked().note).c_str());
  if (!args.quiet) std::fprintf(stderr, "%s\n", summary_line(counts, timings).c_str());
  return counts.failed > 0 ? kData : kDone;
}

int run(int argc, char** argv) {
  Args args = parse_args(argc, argv);
  if (args.help)
    std::fputs(kHelp, stdout);
  else if (args.version)
    std::printf("resnext-infer %s (engine ABI %d)\n", RESNEXT_INFER_VERSION, RESNEXT_ENGINE_ABI);
  else if (args.list_engines)
    for (const std::string& name : engines_in(args.engine.folder.empty() ? program_folder() : args.engine.folder))
      std::printf("%s\n", name.c_str());
  else
    return infer(args);
  finish_standard_output();
  return kDone;
}

}  // namespace
}  // namespace resnext

int main(int argc, char** argv) {
  resnext::guard_standard_files();
  try {
    resnext::install_stop_handlers();
    return resnext::run(argc, argv);
  } catch (const resnext::Error& error) {
    std::fprintf(stderr, "resnext-infer: %s\n", resnext::printable(error.what()).c_str());
    return error.code;
  } catch (const std::bad_alloc&) {
    std::fputs("resnext-infer: not enough memory; use a smaller --batch or fewer --workers\n", stderr);
    return resnext::kData;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnext-infer: a bug: %s\n", resnext::printable(error.what()).c_str());
    return 1;
  }
}
