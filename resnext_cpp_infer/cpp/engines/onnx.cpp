// The engine `onnx`: ONNX Runtime 1.16 or newer, found at run time; providers cpu, cuda and cann.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_api.h"
#include "processor.h"
#include "resnext_engine.h"

namespace {

// Where in the file's metadata the manifest is.
constexpr const char* kManifestKey = "resnext";

class Runtime {
 public:
  explicit Runtime(const char* path) {
    const bool named = path[0] != '\0';
    // Since 1.32 it sends usage events to Microsoft unless this is set before it is loaded (onnxruntime/Privacy.md).
    setenv("ORT_DISABLE_TELEMETRY", "1", /* overwrite: */ 0);
    for (const char* name : {named ? path : "libonnxruntime.so.1", named ? path : "libonnxruntime.so"}) {
      library_ = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library_ != nullptr) break;
    }
    if (library_ == nullptr)
      throw std::runtime_error(named ? dlerror()
                                     : "libonnxruntime.so is not on this system; name it with --runtime FILE");
    const auto get = reinterpret_cast<const ort::Base* (*)()>(dlsym(library_, "OrtGetApiBase"));
    if (get == nullptr) throw std::runtime_error(std::string(path) + " is not ONNX Runtime");
    version_ = get()->version();
    api_ = get()->get_api(ort::kApiVersion);
    if (api_ == nullptr) throw std::runtime_error("ONNX Runtime " + version_ + " is too old; 1.16 or newer is needed");
  }

  const std::string& version() const { return version_; }

  template <typename Entry, typename... Arguments>
  void call(Arguments... arguments) const {
    ort::Status* status = Entry::of(api_)(arguments...);
    if (status == nullptr) return;
    std::string message = ort::ErrorMessage::of(api_)(status);
    ort::ReleaseStatus::of(api_)(status);
    throw std::runtime_error(message.substr(0, message.find('\n')));
  }

  // What `Release` frees when it goes.
  template <typename Release, typename T>
  auto owned(T* thing) const {
    return std::unique_ptr<T, typename Release::Pointer>(thing, Release::of(api_));
  }
  template <typename Release, typename Create, typename T, typename... Arguments>
  auto make(Arguments... arguments) const {
    T* thing = nullptr;
    call<Create>(arguments..., &thing);
    return owned<Release>(thing);
  }

  // A string of the runtime's allocator, copied and freed; empty for none.
  std::string taken(ort::Allocator* allocator, char* text) const {
    if (text == nullptr) return "";
    const std::string copy = text;
    call<ort::FreeWith>(allocator, static_cast<void*>(text));
    return copy;
  }

 private:
  void* library_ = nullptr;  // never closed: its threads may outlive a session
  const void* const* api_ = nullptr;
  std::string version_;
};

template <typename T, typename Release>
using Owned = std::unique_ptr<T, typename Release::Pointer>;

struct Port {
  std::string name;
  int type = 0;
  std::vector<int64_t> shape;
};

}  // namespace

struct resnext_model {
  explicit resnext_model(const resnext_request& request)
      : runtime(request.runtime),
        env(runtime.make<ort::ReleaseEnv, ort::CreateEnv, ort::Env>(static_cast<int>(ort::kErrors), "resnext")),
        options(runtime.make<ort::ReleaseSessionOptions, ort::CreateSessionOptions, ort::SessionOptions>()),
        memory(runtime.make<ort::ReleaseMemoryInfo, ort::CreateCpuMemoryInfo, ort::MemoryInfo>(
            static_cast<int>(ort::kArena), static_cast<int>(ort::kDefault))),
        session(nullptr, nullptr) {
    runtime.call<ort::DefaultAllocator>(&allocator);
    runtime.call<ort::SetIntraOpThreads>(options.get(), static_cast<int>(request.threads));
    runtime.call<ort::SetInterOpThreads>(options.get(), 1);  // the graph is a chain
    // Unsigned weights in 8 bits there, whose sums do not saturate; it changes no float network.
    if (resnext::saturates(resnext::instruction_set()))
      runtime.call<ort::AddSessionConfig>(options.get(), "session.x64quantprecision", "1");
    const std::string device = request.device, number = std::to_string(request.device_id);
    if (device == "cuda") {  // TF32 would round factors to 10 bits
      append<ort::CudaOptions, ort::ReleaseCudaOptions, ort::CreateCudaOptions, ort::UpdateCudaOptions,
             ort::AppendCuda>({{"device_id", number.c_str()}, {"use_tf32", "0"}});
    } else if (device == "cann") {
      const char* precision = request.precision[0] != '\0' ? request.precision : "must_keep_origin_dtype";
      append<ort::CannOptions, ort::ReleaseCannOptions, ort::CreateCannOptions, ort::UpdateCannOptions,
             ort::AppendCann>(
          {{"device_id", number.c_str()}, {"enable_cann_graph", "1"}, {"precision_mode", precision}});
    }
    if (device != "cann" && request.precision[0] != '\0')
      throw std::runtime_error("--precision needs --device cann; otherwise the ONNX file sets it");
    session = runtime.make<ort::ReleaseSession, ort::CreateSession, ort::Session>(
        static_cast<const ort::Env*>(env.get()), request.path, static_cast<const ort::SessionOptions*>(options.get()));
    version = "ONNX Runtime " + runtime.version();
    read_metadata();
    input = port<ort::InputCount, ort::InputName, ort::InputType>("input");
    output = port<ort::OutputCount, ort::OutputName, ort::OutputType>("output");
    const bool images = input.type == ort::kUint8, tensor = input.type == ort::kFloat;
    const size_t colours = images ? 3 : 1;
    if ((!images && !tensor) || input.shape.size() != 4 || input.shape[colours] != 3 || output.type != ort::kFloat ||
        output.shape.size() != 2)
      throw std::runtime_error("the graph does not map images to logits; write it with resnext-run export");
    if (images && input.shape[1] < 0)
      throw std::runtime_error("it contains its preprocessing (export.input=image), and this program resizes images "
                               "itself; export it with export.input=uint8");
    side = input.shape[images ? 1 : 2];
    classes = output.shape[1];
    if (side < 1 || classes < 1 || input.shape[images ? 2 : 3] != side)
      throw std::runtime_error("the graph does not state the sizes of its images and logits");
  }

  template <typename Options, typename Release, typename Create, typename Update, typename Append>
  void append(const std::vector<std::pair<const char*, const char*>>& settings) {
    const auto made = runtime.make<Release, Create, Options>();
    std::vector<const char*> keys, values;
    for (const auto& [key, value] : settings) {
      keys.push_back(key);
      values.push_back(value);
    }
    runtime.call<Update>(made.get(), keys.data(), values.data(), keys.size());
    runtime.call<Append>(options.get(), static_cast<const Options*>(made.get()));
  }

  void read_metadata() {
    const auto metadata = runtime.make<ort::ReleaseMetadata, ort::GetMetadata, ort::Metadata>(
        static_cast<const ort::Session*>(session.get()));
    char* text = nullptr;
    runtime.call<ort::LookupMetadata>(static_cast<const ort::Metadata*>(metadata.get()), allocator, kManifestKey,
                                      &text);
    manifest = runtime.taken(allocator, text);
  }

  template <typename Count, typename Name, typename Type>
  Port port(const char* what) {
    const ort::Session* s = session.get();
    size_t count = 0;
    runtime.call<Count>(s, &count);
    if (count != 1) throw std::runtime_error(std::string("the graph must have exactly one ") + what);
    Port found;
    char* name = nullptr;
    runtime.call<Name>(s, size_t{0}, allocator, &name);
    found.name = runtime.taken(allocator, name);
    const auto type = runtime.make<ort::ReleaseTypeInfo, Type, ort::TypeInfo>(s, size_t{0});
    const ort::TensorInfo* tensor = nullptr;
    runtime.call<ort::CastToTensorInfo>(static_cast<const ort::TypeInfo*>(type.get()), &tensor);
    if (tensor == nullptr) throw std::runtime_error(std::string("the graph's ") + what + " is not a tensor");
    size_t rank = 0;
    runtime.call<ort::GetElementType>(tensor, &found.type);
    runtime.call<ort::DimensionCount>(tensor, &rank);
    found.shape.resize(rank);
    runtime.call<ort::GetDimensions>(tensor, found.shape.data(), rank);
    return found;
  }

  void compute(const void* rows, int64_t n, float* logits) {
    const bool images = input.type == ort::kUint8;
    const int64_t in_shape[4] = {n, images ? side : 3, side, images ? 3 : side}, out_shape[2] = {n, classes};
    const auto bytes = static_cast<size_t>(n * side * side * 3) * (images ? 1 : sizeof(float));
    const ort::MemoryInfo* where = memory.get();
    const auto in = runtime.make<ort::ReleaseValue, ort::CreateTensorWithData, ort::Value>(
        where, const_cast<void*>(rows), bytes, static_cast<const int64_t*>(in_shape), size_t{4}, input.type);
    const auto out = runtime.make<ort::ReleaseValue, ort::CreateTensorWithData, ort::Value>(
        where, static_cast<void*>(logits), static_cast<size_t>(n * classes) * sizeof(float),
        static_cast<const int64_t*>(out_shape), size_t{2}, static_cast<int>(ort::kFloat));
    const char* const in_name[] = {input.name.c_str()};
    const char* const out_name[] = {output.name.c_str()};
    const ort::Value* const in_value[] = {in.get()};
    ort::Value* out_value[] = {out.get()};
    runtime.call<ort::Run>(session.get(), static_cast<const ort::RunOptions*>(nullptr), in_name, in_value, size_t{1},
                           out_name, size_t{1}, static_cast<ort::Value**>(out_value));
  }

  Runtime runtime;
  Owned<ort::Env, ort::ReleaseEnv> env;
  Owned<ort::SessionOptions, ort::ReleaseSessionOptions> options;
  Owned<ort::MemoryInfo, ort::ReleaseMemoryInfo> memory;
  Owned<ort::Session, ort::ReleaseSession> session;
  ort::Allocator* allocator = nullptr;  // the runtime's own
  std::string version, manifest;
  Port input, output;
  int64_t side = 0, classes = 0;
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
      throw std::runtime_error("the graph has " + std::to_string(model->classes) +
                               " classes, more than its manifest");
    model->compute(rows, n, logits);
    return 0;
  } catch (const std::exception& failure) {
    std::snprintf(error, size, "%s", failure.what());
    return 1;
  }
}

const resnext_engine kEngine = {
    RESNEXT_ENGINE_ABI,
    "onnx",
    "cpu cuda cann",
    open_model,
    [](const resnext_model* model) { return model->version.c_str(); },
    [](const resnext_model* model) { return model->manifest.empty() ? nullptr : model->manifest.c_str(); },
    [](const resnext_model* model) {
      return model->input.type == ort::kUint8 ? RESNEXT_IMAGES_UINT8 : RESNEXT_TENSOR_FLOAT32;
    },
    [](const resnext_model* model) {
      return model->input.shape[0] > 0 ? static_cast<int32_t>(model->input.shape[0]) : 0;
    },
    run,
    [](resnext_model* model) { delete model; },
};

}  // namespace

const resnext_engine* resnext_engine_get(uint32_t abi, uint32_t* own) {
  *own = RESNEXT_ENGINE_ABI;
  return abi == RESNEXT_ENGINE_ABI ? &kEngine : nullptr;
}
