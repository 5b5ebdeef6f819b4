// The engine `acl`: .om models on Ascend 310, 310P and 910 through AscendCL, with a static or a dynamic batch.

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "acl_api.h"
#include "resnext_engine.h"

namespace {

// The input that ATC adds to a model of dynamic batch.
constexpr const char* kBatchInput = "ascend_mbatch_shape_data";

float from_half(uint16_t bits) {
  const int exponent = (bits >> 10) & 0x1F, fraction = bits & 0x3FF;
  const float sign = (bits & 0x8000) != 0 ? -1.0F : 1.0F;
  if (exponent == 0x1F) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
}

// The library and its functions; never closed, since CANN leaves threads behind.
class Library {
 public:
  explicit Library(const char* path) {
    const char* name = path[0] != '\0' ? path : "libascendcl.so";
    handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr)
      throw std::runtime_error(std::string("AscendCL cannot be loaded (") + dlerror() +
                               "); install CANN and source its set_env.sh, or name libascendcl.so with --runtime FILE");
#define RESNEXT_FIND(function) find(&api.function, #function)
    RESNEXT_FIND(aclInit);
    RESNEXT_FIND(aclFinalize);
    RESNEXT_FIND(aclGetRecentErrMsg);
    RESNEXT_FIND(aclrtGetVersion);
    RESNEXT_FIND(aclrtSetDevice);
    RESNEXT_FIND(aclrtResetDevice);
    RESNEXT_FIND(aclrtCreateContext);
    RESNEXT_FIND(aclrtDestroyContext);
    RESNEXT_FIND(aclrtSetCurrentContext);
    RESNEXT_FIND(aclrtMalloc);
    RESNEXT_FIND(aclrtFree);
    RESNEXT_FIND(aclrtMemcpy);
    RESNEXT_FIND(aclmdlLoadFromFile);
    RESNEXT_FIND(aclmdlUnload);
    RESNEXT_FIND(aclmdlCreateDesc);
    RESNEXT_FIND(aclmdlDestroyDesc);
    RESNEXT_FIND(aclmdlGetDesc);
    RESNEXT_FIND(aclmdlGetNumInputs);
    RESNEXT_FIND(aclmdlGetNumOutputs);
    RESNEXT_FIND(aclmdlGetInputSizeByIndex);
    RESNEXT_FIND(aclmdlGetOutputSizeByIndex);
    RESNEXT_FIND(aclmdlGetInputDims);
    RESNEXT_FIND(aclmdlGetInputDataType);
    RESNEXT_FIND(aclmdlGetOutputDataType);
    RESNEXT_FIND(aclmdlGetDynamicBatch);
    RESNEXT_FIND(aclmdlGetInputIndexByName);
    RESNEXT_FIND(aclmdlSetDynamicBatchSize);
    RESNEXT_FIND(aclmdlCreateDataset);
    RESNEXT_FIND(aclmdlDestroyDataset);
    RESNEXT_FIND(aclmdlAddDatasetBuffer);
    RESNEXT_FIND(aclCreateDataBuffer);
    RESNEXT_FIND(aclDestroyDataBuffer);
    RESNEXT_FIND(aclmdlExecute);
#undef RESNEXT_FIND
  }

  // Throws, naming the call, where `code` is not that of success.
  void check(int code, const char* call) const {
    if (code == acl::kOk) return;
    const char* more = api.aclGetRecentErrMsg();
    std::string text = std::string(call) + " failed with code " + std::to_string(code);
    if (more != nullptr && more[0] != '\0') text += std::string(": ") + more;
    std::replace(text.begin(), text.end(), '\n', ' ');
    throw std::runtime_error(text);
  }
  template <typename T>
  T* check(T* made, const char* call) const {
    if (made == nullptr) check(-1, call);
    return made;
  }

  acl::Api api{};

 private:
  template <typename Function>
  void find(Function* target, const char* name) {
    *target = reinterpret_cast<Function>(dlsym(handle_, name));
    if (*target == nullptr)
      throw std::runtime_error(std::string("libascendcl.so has no ") + name + "; CANN 5.1 or newer is needed");
  }
  void* handle_;
};

}  // namespace

// Everything is freed in the opposite order of its making, also where opening fails half way.
struct resnext_model {
  explicit resnext_model(const resnext_request& request) : library(request.runtime), device(request.device_id) {
    if (request.precision[0] != '\0')
      throw std::runtime_error("--precision cannot be used with .om: its precision was set in ATC");
    try {
      open(request);
    } catch (...) {
      close();
      throw;
    }
  }
  ~resnext_model() { close(); }

  void open(const resnext_request& request) {
    const acl::Api& api = library.api;
    library.check(api.aclInit(nullptr), "aclInit");
    initialised = true;
    library.check(api.aclrtSetDevice(device), "aclrtSetDevice");
    device_set = true;
    library.check(api.aclrtCreateContext(&context, device), "aclrtCreateContext");
    int32_t major = 0, minor = 0, patch = 0;
    library.check(api.aclrtGetVersion(&major, &minor, &patch), "aclrtGetVersion");
    version = "AscendCL " + std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
    library.check(api.aclmdlLoadFromFile(request.path, &model), "aclmdlLoadFromFile");
    loaded = true;
    desc = library.check(api.aclmdlCreateDesc(), "aclmdlCreateDesc");
    library.check(api.aclmdlGetDesc(desc, model), "aclmdlGetDesc");
    read_shape(request);
    inputs = library.check(api.aclmdlCreateDataset(), "aclmdlCreateDataset");
    outputs = library.check(api.aclmdlCreateDataset(), "aclmdlCreateDataset");
    for (size_t i = 0; i < api.aclmdlGetNumInputs(desc); ++i) add(inputs, api.aclmdlGetInputSizeByIndex(desc, i));
    add(outputs, api.aclmdlGetOutputSizeByIndex(desc, 0));
  }

  void read_shape(const resnext_request& request) {
    const acl::Api& api = library.api;
    if (request.image_size < 1 || request.classes < 1)
      throw std::runtime_error(std::string("an .om file cannot contain a manifest; put it beside the model as ") +
                               request.path + ".json");
    if (api.aclmdlGetNumOutputs(desc) != 1) throw std::runtime_error("the model must have exactly one output");
    acl::Dims dims{};
    library.check(api.aclmdlGetInputDims(desc, 0, &dims), "aclmdlGetInputDims");
    const int type = api.aclmdlGetInputDataType(desc, 0);
    if (type != acl::kUint8 && type != acl::kFloat)
      throw std::runtime_error("the model's input is neither uint8 nor float32");
    uint8_input = type == acl::kUint8;
    const int64_t side = request.image_size;
    const bool nhwc = dims.count == 4 && dims.dims[1] == side && dims.dims[2] == side && dims.dims[3] == 3;
    const bool nchw = dims.count == 4 && dims.dims[1] == 3 && dims.dims[2] == side && dims.dims[3] == side;
    if (uint8_input ? !nhwc : !nchw)
      throw std::runtime_error(
          "the model's input does not match the manifest's images; was it converted from another model?");
    row_bytes = static_cast<size_t>(side * side * 3) * (uint8_input ? 1 : sizeof(float));
    half_output = api.aclmdlGetOutputDataType(desc, 0) == acl::kFloat16;
    if (!half_output && api.aclmdlGetOutputDataType(desc, 0) != acl::kFloat)
      throw std::runtime_error("the model's output is neither float32 nor float16");
    classes = request.classes;
    if (dims.dims[0] > 0) {
      batches = {static_cast<uint64_t>(dims.dims[0])};
      return;
    }
    acl::Batches found{};
    library.check(api.aclmdlGetDynamicBatch(desc, &found), "aclmdlGetDynamicBatch");
    batches.assign(found.batch, found.batch + std::min<size_t>(found.count, acl::kMaxDims));
    std::sort(batches.begin(), batches.end());
    if (batches.empty()) throw std::runtime_error("the model has no fixed batch and no list of dynamic ones");
    library.check(api.aclmdlGetInputIndexByName(desc, kBatchInput, &batch_input), "aclmdlGetInputIndexByName");
    dynamic = true;
  }

  void add(acl::Dataset* dataset, size_t size) {
    const acl::Api& api = library.api;
    void* data = nullptr;
    library.check(api.aclrtMalloc(&data, size, acl::kHugeFirst), "aclrtMalloc");
    memory.push_back({data, size});
    buffers.push_back(library.check(api.aclCreateDataBuffer(data, size), "aclCreateDataBuffer"));
    library.check(api.aclmdlAddDatasetBuffer(dataset, buffers.back()), "aclmdlAddDatasetBuffer");
  }

  // Computes up to the largest batch at once.
  void compute(const char* rows, size_t n, float* logits) {
    library.check(library.api.aclrtSetCurrentContext(context), "aclrtSetCurrentContext");
    for (size_t first = 0; first < n;) {
      const size_t count = std::min<size_t>(n - first, batches.back());
      part(rows + first * row_bytes, count, logits + first * static_cast<size_t>(classes));
      first += count;
    }
  }

  void part(const char* rows, size_t n, float* logits) {
    const acl::Api& api = library.api;
    const uint64_t batch = *std::lower_bound(batches.begin(), batches.end(), n);
    if (dynamic)
      library.check(api.aclmdlSetDynamicBatchSize(model, inputs, batch_input, batch), "aclmdlSetDynamicBatchSize");
    const auto& [input, input_size] = memory.front();
    const auto& [output, output_size] = memory.back();
    const size_t count = static_cast<size_t>(batch) * static_cast<size_t>(classes),
                 bytes = count * (half_output ? 2 : 4);
    if (batch * row_bytes > input_size || bytes > output_size)
      throw std::runtime_error("the model's buffers are smaller than its shapes; was it converted from another model?");
    library.check(api.aclrtMemcpy(input, input_size, rows, n * row_bytes, acl::kToDevice), "aclrtMemcpy");
    library.check(api.aclmdlExecute(model, inputs, outputs), "aclmdlExecute");
    host.resize(bytes);
    library.check(api.aclrtMemcpy(host.data(), bytes, output, bytes, acl::kToHost), "aclrtMemcpy");
    for (size_t i = 0; i < n * static_cast<size_t>(classes); ++i) {
      if (half_output) {
        uint16_t bits = 0;
        std::memcpy(&bits, host.data() + 2 * i, 2);
        logits[i] = from_half(bits);
      } else {
        std::memcpy(logits + i, host.data() + 4 * i, 4);
      }
    }
  }

  void close() {
    const acl::Api& api = library.api;
    // Contexts belong to threads: what was made in this one cannot be freed by a thread without it.
    if (context != nullptr) api.aclrtSetCurrentContext(context);
    for (const acl::Buffer* buffer : buffers) api.aclDestroyDataBuffer(buffer);
    for (const auto& [data, size] : memory) api.aclrtFree(data);
    if (outputs != nullptr) api.aclmdlDestroyDataset(outputs);
    if (inputs != nullptr) api.aclmdlDestroyDataset(inputs);
    if (desc != nullptr) api.aclmdlDestroyDesc(desc);
    if (loaded) api.aclmdlUnload(model);
    if (context != nullptr) api.aclrtDestroyContext(context);
    if (device_set) api.aclrtResetDevice(device);
    if (initialised) api.aclFinalize();
  }

  struct Memory {
    void* data;
    size_t size;
  };
  Library library;
  int32_t device;
  bool initialised = false, device_set = false, loaded = false, dynamic = false, uint8_input = true,
       half_output = false;
  acl::Context context = nullptr;
  uint32_t model = 0;
  acl::Desc* desc = nullptr;
  acl::Dataset *inputs = nullptr, *outputs = nullptr;
  std::vector<Memory> memory;
  std::vector<acl::Buffer*> buffers;
  std::vector<uint64_t> batches;
  size_t batch_input = 0, row_bytes = 0;
  int classes = 0;
  std::string version;
  std::vector<char> host;
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
    model->compute(static_cast<const char*>(rows), static_cast<size_t>(n), logits);
    return 0;
  } catch (const std::exception& failure) {
    std::snprintf(error, size, "%s", failure.what());
    return 1;
  }
}

const resnext_engine kEngine = {
    RESNEXT_ENGINE_ABI,
    "acl",
    "ascend310p ascend310 ascend910",
    open_model,
    [](const resnext_model* model) { return model->version.c_str(); },
    [](const resnext_model*) -> const char* { return nullptr; },
    [](const resnext_model* model) { return model->uint8_input ? RESNEXT_IMAGES_UINT8 : RESNEXT_TENSOR_FLOAT32; },
    [](const resnext_model* model) -> int32_t {
      return model->dynamic ? 0 : static_cast<int32_t>(model->batches.front());
    },
    run,
    [](resnext_model* model) { delete model; },
};

}  // namespace

const resnext_engine* resnext_engine_get(uint32_t abi, uint32_t* own) {
  *own = RESNEXT_ENGINE_ABI;
  return abi == RESNEXT_ENGINE_ABI ? &kEngine : nullptr;
}
