// A library that imitates AscendCL for tests. A "model" is a text file of three lines: the type of the input (uint8 or
// float32), the type of the output (float32 or float16), and the batches ("4", or "1 2 8" for a dynamic one).
//
// FAKE_ACL_FAIL=name:n makes the n-th call of a function fail. At aclFinalize, or the end, FAKE_ACL_REPORT gets what
// was made and not freed. Logit c of an image is the mean of its values at c, c + classes, ... (classes is
// FAKE_ACL_CLASSES). As in AscendCL a context belongs to the thread that made it or set it, and a thread without one can
// neither make nor free nor compute anything (ACL_ERROR_RT_CONTEXT_NULL).

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "acl_api.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct State {
  std::map<std::string, int> calls, live;
  std::string input, output;
  std::vector<uint64_t> batches;
  uint64_t batch = 0;
  int side = 0;
} state;

constexpr int kNoContext = 107002;
thread_local void* current = nullptr;

bool fails(const char* name) {
  const int call = ++state.calls[name];
  const char* asked = std::getenv("FAKE_ACL_FAIL");
  if (asked == nullptr) return false;
  const std::string text = asked;
  const size_t colon = text.find(':');
  return text.substr(0, colon) == name && (colon == std::string::npos || std::stoi(text.substr(colon + 1)) == call);
}

int number(const char* name) { return std::atoi(std::getenv(name)); }
size_t value_bytes() { return state.input == "uint8" ? 1 : 4; }
size_t row_bytes() { return static_cast<size_t>(state.side) * state.side * 3 * value_bytes(); }
size_t logit_bytes() { return state.output == "float16" ? 2 : 4; }

void report() {
  const char* path = std::getenv("FAKE_ACL_REPORT");
  if (path == nullptr) return;
  std::ofstream stream(path);
  for (const auto& [name, count] : state.live) stream << name << " " << count << "\n";
}

template <typename T>
T* made(const char* what) {
  ++state.live[what];
  return static_cast<T*>(std::malloc(1));
}

uint16_t to_half(float value) {  // of numbers that a half can hold nearly: tests use 0..255
  uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  const int exponent = static_cast<int>((bits >> 23) & 0xFF) - 127 + 15;
  if (exponent <= 0) return 0;
  return static_cast<uint16_t>(((bits >> 16) & 0x8000) | (exponent << 10) | ((bits >> 13) & 0x3FF));
}

struct FakeBuffer {
  void* data;
  size_t size;
};
struct FakeDataset {
  std::vector<FakeBuffer*> buffers;
};

}  // namespace

EXPORT int aclInit(const char*) { return fails("aclInit") ? 100001 : (++state.live["init"], 0); }
EXPORT int aclFinalize() {
  --state.live["init"];
  report();
  return 0;
}
EXPORT const char* aclGetRecentErrMsg() { return "E99999: the fake\nsays no"; }
EXPORT int aclrtGetVersion(int32_t* a, int32_t* b, int32_t* c) {
  *a = 1;
  *b = 2;
  *c = 3;
  return fails("aclrtGetVersion") ? 1 : 0;
}
EXPORT int aclrtSetDevice(int32_t) { return fails("aclrtSetDevice") ? 107001 : (++state.live["device"], 0); }
EXPORT int aclrtResetDevice(int32_t) {
  --state.live["device"];
  return 0;
}
EXPORT int aclrtCreateContext(void** context, int32_t) {
  if (fails("aclrtCreateContext")) return 1;
  *context = current = made<void>("context");
  return 0;
}
EXPORT int aclrtDestroyContext(void* context) {
  if (current == context) current = nullptr;
  std::free(context);
  --state.live["context"];
  return 0;
}
EXPORT int aclrtSetCurrentContext(void* context) {
  if (fails("aclrtSetCurrentContext")) return 1;
  current = context;
  return 0;
}
EXPORT int aclrtMalloc(void** memory, size_t size, int) {
  if (current == nullptr) return kNoContext;
  if (fails("aclrtMalloc")) return 207001;
  *memory = std::malloc(size);
  ++state.live["memory"];
  return 0;
}
EXPORT int aclrtFree(void* memory) {
  if (current == nullptr) return kNoContext;
  std::free(memory);
  --state.live["memory"];
  return 0;
}
EXPORT int aclrtMemcpy(void* to, size_t capacity, const void* from, size_t count, int) {
  if (current == nullptr) return kNoContext;
  if (fails("aclrtMemcpy") || count > capacity) return 1;
  std::memcpy(to, from, count);
  return 0;
}
EXPORT int aclmdlLoadFromFile(const char* path, uint32_t* id) {
  if (current == nullptr) return kNoContext;
  if (fails("aclmdlLoadFromFile")) return 145001;
  std::ifstream stream(path);
  std::string line;
  std::getline(stream, state.input);
  std::getline(stream, state.output);
  std::getline(stream, line);
  std::istringstream words(line);
  state.batches.clear();
  for (uint64_t batch; words >> batch;) state.batches.push_back(batch);
  state.batch = state.batches.back();
  state.side = number("FAKE_ACL_SIDE");
  *id = 7;
  ++state.live["model"];
  return 0;
}
EXPORT int aclmdlUnload(uint32_t) {
  if (current == nullptr) return kNoContext;
  --state.live["model"];
  return 0;
}
EXPORT void* aclmdlCreateDesc() { return fails("aclmdlCreateDesc") ? nullptr : made<void>("desc"); }
EXPORT int aclmdlDestroyDesc(void* desc) {
  if (current == nullptr) return kNoContext;
  std::free(desc);
  --state.live["desc"];
  return 0;
}
EXPORT int aclmdlGetDesc(void*, uint32_t) { return fails("aclmdlGetDesc") ? 1 : 0; }
EXPORT size_t aclmdlGetNumInputs(void*) { return state.batches.size() > 1 ? 2 : 1; }
EXPORT size_t aclmdlGetNumOutputs(void*) { return 1; }
EXPORT size_t aclmdlGetInputSizeByIndex(void*, size_t index) {
  return index == 1 ? 8 : state.batches.back() * row_bytes();
}
EXPORT size_t aclmdlGetOutputSizeByIndex(void*, size_t) {
  return state.batches.back() * static_cast<size_t>(number("FAKE_ACL_CLASSES")) * logit_bytes();
}
EXPORT int aclmdlGetInputDims(const void*, size_t, acl::Dims* dims) {
  if (fails("aclmdlGetInputDims")) return 1;
  const int64_t n = state.batches.size() > 1 ? -1 : static_cast<int64_t>(state.batches[0]), s = state.side;
  const bool images = state.input == "uint8";
  const int64_t shape[] = {n, images ? s : 3, s, images ? 3 : s};
  dims->count = 4;
  std::memcpy(dims->dims, shape, sizeof shape);
  return 0;
}
EXPORT int aclmdlGetInputDataType(const void*, size_t) {
  return state.input == "uint8" ? 4 : state.input == "float32" ? 0 : 1;
}
EXPORT int aclmdlGetOutputDataType(const void*, size_t) {
  return state.output == "float16" ? 1 : state.output == "float32" ? 0 : 3;
}
EXPORT int aclmdlGetDynamicBatch(const void*, acl::Batches* found) {
  if (fails("aclmdlGetDynamicBatch")) return 1;
  found->count = state.batches.size();
  for (size_t i = 0; i < found->count; ++i) found->batch[i] = state.batches[i];
  return 0;
}
EXPORT int aclmdlGetInputIndexByName(const void*, const char* name, size_t* index) {
  if (fails("aclmdlGetInputIndexByName") || std::strcmp(name, "ascend_mbatch_shape_data") != 0) return 1;
  *index = 1;
  return 0;
}
EXPORT int aclmdlSetDynamicBatchSize(uint32_t, void*, size_t index, uint64_t batch) {
  if (fails("aclmdlSetDynamicBatchSize") || index != 1) return 1;
  state.batch = batch;
  return 0;
}
EXPORT void* aclmdlCreateDataset() {
  if (fails("aclmdlCreateDataset")) return nullptr;
  ++state.live["dataset"];
  return new FakeDataset;
}
EXPORT int aclmdlDestroyDataset(const void* dataset) {
  if (current == nullptr) return kNoContext;
  delete static_cast<const FakeDataset*>(dataset);
  --state.live["dataset"];
  return 0;
}
EXPORT int aclmdlAddDatasetBuffer(void* dataset, void* buffer) {
  if (fails("aclmdlAddDatasetBuffer")) return 1;
  static_cast<FakeDataset*>(dataset)->buffers.push_back(static_cast<FakeBuffer*>(buffer));
  return 0;
}
EXPORT void* aclCreateDataBuffer(void* data, size_t size) {
  if (fails("aclCreateDataBuffer")) return nullptr;
  ++state.live["buffer"];
  return new FakeBuffer{data, size};
}
EXPORT int aclDestroyDataBuffer(const void* buffer) {
  delete static_cast<const FakeBuffer*>(buffer);
  --state.live["buffer"];
  return 0;
}
EXPORT int aclmdlExecute(uint32_t, const void* inputs, void* outputs) {
  if (current == nullptr) return kNoContext;
  if (fails("aclmdlExecute")) return 507011;
  const auto* in = static_cast<const char*>(static_cast<const FakeDataset*>(inputs)->buffers[0]->data);
  auto* out = static_cast<char*>(static_cast<FakeDataset*>(outputs)->buffers[0]->data);
  const auto classes = static_cast<size_t>(number("FAKE_ACL_CLASSES"));
  const size_t values = row_bytes() / value_bytes();
  for (uint64_t n = 0; n < state.batch; ++n, in += row_bytes()) {
    for (size_t c = 0; c < classes; ++c) {
      double sum = 0, count = 0;
      for (size_t p = c; p < values; p += classes, ++count) {
        float value = 0;
        if (value_bytes() == 1)
          value = static_cast<unsigned char>(in[p]);
        else
          std::memcpy(&value, in + 4 * p, 4);
        sum += value;
      }
      const auto logit = static_cast<float>(sum / count);
      const uint16_t half = to_half(logit);
      std::memcpy(out, logit_bytes() == 2 ? static_cast<const void*>(&half) : &logit, logit_bytes());
      out += logit_bytes();
    }
  }
  return 0;
}
