// The engine `mslite`: MINDIR and .ms models with MindSpore Lite, on Ascend 310, 310P, 910 or the CPU. Built where
// LITE_HOME is.

#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "include/api/context.h"
#include "include/api/model.h"
#include "include/api/types.h"
#include "lite_log.h"
#include "mindir_file.h"
#include "resnext_engine.h"

namespace {

// What AscendDeviceInfo takes. It leaves any other word out with a line in its log, so it is refused here.
constexpr const char* kPrecisions[] = {"enforce_fp16", "enforce_fp32", "enforce_origin", "preferred_fp32",
                                       "preferred_optimal"};

std::string known_precisions() {
  std::string text;
  for (const char* name : kPrecisions) text += std::string(text.empty() ? "" : ", ") + name;
  return text;
}

void check_precision(const std::string& precision) {
  for (const char* name : kPrecisions)
    if (precision == name) return;
  throw std::runtime_error("unknown precision '" + precision + "'; available: " + known_precisions());
}

std::string one_line(std::string text) {
  for (char& c : text) c = c == '\n' ? ' ' : c;
  return text;
}

// What Lite's log says of a call that failed, or else its status, in one line.
std::string reason(const mindspore::Status& status, const resnext::HeldBackLog& log) {
  const std::string said = log.errors();
  return one_line(said.empty() ? status.ToString() : said);
}

// The newest MINDIR that the Lite reads which this engine was built with; 0 where that is not known. Lite 2.0 is of the
// time of IR version 1 and refuses others ("can only support the maximum mind ir version: 1").
constexpr const char* kVersion = "MindSpore Lite " RESNEXT_LITE_VERSION;
uint64_t newest_mindir() { return std::strncmp(RESNEXT_LITE_VERSION, "2.0.", 4) == 0 ? 1 : 0; }

// Lite says of every unfit file "Common error code.", after some pages of log, and reads it into memory first.
void check_file(const std::string& path) {
  const resnext::MindirFile file = resnext::read_mindir(path);
  const uint64_t newest = newest_mindir();
  if (newest != 0 && file.ir_version > newest)
    throw std::runtime_error(path + " is a MINDIR of IR version " + std::to_string(file.ir_version) + ", written by " +
                             "MindSpore " + file.writer + "; " + kVersion + " reads version " + std::to_string(newest) +
                             ": write it with resnext-run export --format lite");
}

std::shared_ptr<mindspore::Context> make_context(const resnext_request& request) {
  const std::string device = request.device, precision = request.precision;
  auto context = std::make_shared<mindspore::Context>();
  if (device == "cpu") {
    if (!precision.empty()) throw std::runtime_error("--precision needs an Ascend device");
    if (request.threads > 0) context->SetThreadNum(request.threads);
    context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
    return context;
  }
  auto info = std::make_shared<mindspore::AscendDeviceInfo>();
  info->SetDeviceID(static_cast<uint32_t>(request.device_id));
  if (!precision.empty()) {
    check_precision(precision);
    info->SetPrecisionMode(precision);
  }
  context->MutableDeviceInfo().push_back(info);
  return context;
}

}  // namespace

struct resnext_model {
  explicit resnext_model(const resnext_request& request)
      : path(request.path), on_cpu(request.device == std::string("cpu")) {
    if (request.image_size < 1 || request.classes < 1)
      throw std::runtime_error("it needs a manifest beside the model: " + path + ".json");
    const auto context = make_context(request);
    const bool lite = path.size() > 3 && path.compare(path.size() - 3, 3, ".ms") == 0;
    if (!lite) check_file(path);
    build(lite ? mindspore::kMindIR_Lite : mindspore::kMindIR, context);
    read_shapes(request);
  }

  void build(mindspore::ModelType type, const std::shared_ptr<mindspore::Context>& context) {
    const resnext::HeldBackLog log;
    const mindspore::Status status = model.Build(path, type, context);
    if (status.IsOk()) return;
    const std::string why = reason(status, log);
    if (on_cpu) throw std::runtime_error(path + " cannot be opened: " + why);  // there is nothing else to fail
    const bool plugin = why.rfind("dlopen ", 0) == 0;
    throw std::runtime_error("Model::Build failed: " + (plugin ? why.substr(0, why.find(" | ")) : why) +
                             (plugin ? "; install CANN and source its set_env.sh" : ""));
  }

  // Compares the model's input and output with those of the manifest.
  void read_shapes(const resnext_request& request) {
    const auto inputs = model.GetInputs();
    if (inputs.size() != 1) unfit("has " + std::to_string(inputs.size()) + " inputs, not one");
    const auto type = inputs[0].DataType();
    uint8_input = type == mindspore::DataType::kNumberTypeUInt8;
    if (!uint8_input && type != mindspore::DataType::kNumberTypeFloat32)
      unfit("takes neither uint8 nor float32 images");
    shape = inputs[0].Shape();
    const int64_t side = request.image_size;
    const std::vector<int64_t> row =
        uint8_input ? std::vector<int64_t>{side, side, 3} : std::vector<int64_t>{3, side, side};
    if (shape.size() != 4 || std::vector<int64_t>(shape.begin() + 1, shape.end()) != row)
      unfit("takes images " + text_of(shape) + ", not the manifest's " + text_of(row));
    row_bytes = static_cast<size_t>(side * side * 3) * (uint8_input ? 1 : sizeof(float));
    classes = request.classes;
    fixed = shape[0] > 0 ? static_cast<int32_t>(shape[0]) : 0;
    const auto outputs = model.GetOutputs();
    if (outputs.size() != 1) unfit("has " + std::to_string(outputs.size()) + " outputs, not one");
    const auto out = outputs[0].Shape();  // it may be unknown until the batch is
    if (!out.empty() && out.back() > 0 && out.back() != classes)
      unfit("gives " + std::to_string(out.back()) + " logits, the manifest has " + std::to_string(classes) +
            " classes");
  }

  [[noreturn]] void unfit(const std::string& what) const {
    throw std::runtime_error(path + " " + what + "; is it another network's?");
  }

  static std::string text_of(const std::vector<int64_t>& sizes) {
    std::string text;
    for (const int64_t size : sizes) text += (text.empty() ? "(" : ", ") + (size < 0 ? "N" : std::to_string(size));
    return text + ")";
  }

  // Makes a model of any batch take `n` images.
  void resize(int64_t n) {
    std::vector<int64_t> wanted = shape;
    wanted[0] = n;
    const resnext::HeldBackLog log;
    const mindspore::Status status = model.Resize(model.GetInputs(), {wanted});
    if (status.IsOk()) {
      shape = wanted;
      return;
    }
    if (on_cpu) throw std::runtime_error("Model::Resize failed: " + reason(status, log));
    throw std::runtime_error(path + " cannot be given a batch of " + std::to_string(n) + " (" + reason(status, log) +
                             "); on an Ascend a model takes the batch sizes of its conversion: list them in the " +
                             "manifest as artefact.batch_sizes");
  }

  void compute(const void* rows, int64_t n, float* logits) {
    if (fixed == 0 && shape[0] != n) resize(n);
    auto inputs = model.GetInputs();
    const size_t bytes = static_cast<size_t>(n) * row_bytes;
    void* target = inputs[0].MutableData();
    if (target == nullptr || inputs[0].DataSize() != bytes)
      throw std::runtime_error("the model takes " + std::to_string(inputs[0].DataSize()) + " bytes, not " +
                               std::to_string(bytes));
    std::memcpy(target, rows, bytes);
    std::vector<mindspore::MSTensor> outputs;
    const mindspore::Status status = model.Predict(inputs, &outputs);
    if (!status.IsOk()) throw std::runtime_error("Model::Predict failed: " + one_line(status.ToString()));
    const size_t wanted = static_cast<size_t>(n) * static_cast<size_t>(classes) * sizeof(float);
    if (outputs.size() != 1 || outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32 ||
        outputs[0].DataSize() != wanted || outputs[0].Data() == nullptr)
      unfit("does not give float32 logits for the manifest's " + std::to_string(classes) + " classes");
    std::memcpy(logits, outputs[0].Data().get(), wanted);
  }

  std::string path;
  bool on_cpu;
  mindspore::Model model;
  std::vector<int64_t> shape;  // of the input, with the batch that the model takes now
  size_t row_bytes = 0;
  int classes = 0;
  int32_t fixed = 0;
  bool uint8_input = true;
};

namespace {

resnext_model* open_model(const resnext_request* request, char* error, size_t size) {
  try {
    return new resnext_model(*request);
  } catch (const std::exception& failure) {
    std::snprintf(error, size, "%s", failure.what());
    return nullptr;
  }
}

int run(resnext_model* model, const void* rows, int32_t n, float* logits, size_t capacity, char* error, size_t size) {
  try {
    if (capacity < static_cast<size_t>(n) * static_cast<size_t>(model->classes))
      throw std::runtime_error("the buffer for logits is too small");
    model->compute(rows, n, logits);
    return 0;
  } catch (const std::exception& failure) {
    std::snprintf(error, size, "%s", failure.what());
    return 1;
  }
}

const resnext_engine kEngine = {
    RESNEXT_ENGINE_ABI,
    "mslite",
    "ascend310p ascend310 ascend910 cpu",
    open_model,
    [](const resnext_model*) { return kVersion; },
    [](const resnext_model*) -> const char* { return nullptr; },
    [](const resnext_model* model) { return model->uint8_input ? RESNEXT_IMAGES_UINT8 : RESNEXT_TENSOR_FLOAT32; },
    [](const resnext_model* model) { return model->fixed; },
    run,
    [](resnext_model* model) { delete model; },
};

}  // namespace

const resnext_engine* resnext_engine_get(uint32_t abi, uint32_t* own) {
  *own = RESNEXT_ENGINE_ABI;
  return abi == RESNEXT_ENGINE_ABI ? &kEngine : nullptr;
}
