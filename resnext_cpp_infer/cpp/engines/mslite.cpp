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

void check(const mindspore::Status& status, const char* call) {
  if (status.IsOk()) return;
  std::string text = std::string(call) + " failed: " + status.ToString();
  for (char& c : text) c = c == '\n' ? ' ' : c;
  throw std::runtime_error(text);
}

}  // namespace

struct resnext_model {
  explicit resnext_model(const resnext_request& request) {
    if (request.image_size < 1 || request.classes < 1)
      throw std::runtime_error(std::string("it needs a manifest beside the model: ") + request.path + ".json");
    const std::string device = request.device, precision = request.precision;
    auto context = std::make_shared<mindspore::Context>();
    if (device == "cpu") {
      if (!precision.empty()) throw std::runtime_error("--precision needs an Ascend device");
      if (request.threads > 0) context->SetThreadNum(request.threads);
      context->MutableDeviceInfo().push_back(std::make_shared<mindspore::CPUDeviceInfo>());
    } else {
      auto info = std::make_shared<mindspore::AscendDeviceInfo>();
      info->SetDeviceID(static_cast<uint32_t>(request.device_id));
      if (!precision.empty()) {
        check_precision(precision);
        info->SetPrecisionMode(precision);
      }
      context->MutableDeviceInfo().push_back(info);
    }
    const std::string path = request.path;
    const bool lite = path.size() > 3 && path.compare(path.size() - 3, 3, ".ms") == 0;
    check(model.Build(path, lite ? mindspore::kMindIR_Lite : mindspore::kMindIR, context), "Model::Build");
    const auto inputs = model.GetInputs();
    if (inputs.size() != 1) throw std::runtime_error("the model must have exactly one input");
    const auto type = inputs[0].DataType();
    uint8_input = type == mindspore::DataType::kNumberTypeUInt8;
    if (!uint8_input && type != mindspore::DataType::kNumberTypeFloat32)
      throw std::runtime_error("the model's input is neither uint8 nor float32");
    shape = inputs[0].Shape();
    const int64_t side = request.image_size;
    const std::vector<int64_t> row =
        uint8_input ? std::vector<int64_t>{side, side, 3} : std::vector<int64_t>{3, side, side};
    if (shape.size() != 4 || std::vector<int64_t>(shape.begin() + 1, shape.end()) != row)
      throw std::runtime_error("the model's input does not match the manifest's images");
    row_bytes = static_cast<size_t>(side * side * 3) * (uint8_input ? 1 : sizeof(float));
    classes = request.classes;
    fixed = shape[0] > 0 ? static_cast<int32_t>(shape[0]) : 0;
  }

  void compute(const void* rows, int64_t n, float* logits) {
    auto inputs = model.GetInputs();
    if (fixed == 0 && inputs[0].Shape()[0] != n) {
      shape[0] = n;
      check(model.Resize(inputs, {shape}), "Model::Resize");
      inputs = model.GetInputs();
    }
    const size_t bytes = static_cast<size_t>(n) * row_bytes;
    void* target = inputs[0].MutableData();
    if (target == nullptr || inputs[0].DataSize() != bytes)
      throw std::runtime_error("the model takes " + std::to_string(inputs[0].DataSize()) + " bytes, not " +
                               std::to_string(bytes));
    std::memcpy(target, rows, bytes);
    std::vector<mindspore::MSTensor> outputs;
    check(model.Predict(inputs, &outputs), "Model::Predict");
    const size_t wanted = static_cast<size_t>(n) * static_cast<size_t>(classes) * sizeof(float);
    if (outputs.size() != 1 || outputs[0].DataType() != mindspore::DataType::kNumberTypeFloat32 ||
        outputs[0].DataSize() != wanted || outputs[0].Data() == nullptr)
      throw std::runtime_error("the model's output is not float32 logits for the manifest's classes");
    std::memcpy(logits, outputs[0].Data().get(), wanted);
  }

  mindspore::Model model;
  std::vector<int64_t> shape;
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
    [](const resnext_model*) { return "MindSpore Lite"; },
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
