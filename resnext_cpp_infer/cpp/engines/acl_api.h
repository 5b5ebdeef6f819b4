// What the engine `acl` calls of AscendCL, declared here from its documentation: libascendcl.so is opened at run time,
// so this builds where no CANN is. C functions and plain structures; CANN keeps them across releases.
#pragma once

#include <cstddef>
#include <cstdint>

namespace acl {

constexpr int kOk = 0;
constexpr int kMaxDims = 128, kNameLength = 128;

enum DataType : int { kFloat = 0, kFloat16 = 1, kUint8 = 4 };
enum MallocPolicy : int { kHugeFirst = 0 };
enum Copy : int { kToDevice = 1, kToHost = 2 };

struct Dims {
  char name[kNameLength];
  size_t count;
  int64_t dims[kMaxDims];
};

// The batches that a model was converted for, with a dynamic batch.
struct Batches {
  size_t count;
  uint64_t batch[kMaxDims];
};

struct Desc;
struct Dataset;
struct Buffer;
using Context = void*;

// The functions, by the names that the library exports.
struct Api {
  int (*aclInit)(const char* config);
  int (*aclFinalize)();
  const char* (*aclGetRecentErrMsg)();
  int (*aclrtGetVersion)(int32_t* major, int32_t* minor, int32_t* patch);
  int (*aclrtSetDevice)(int32_t device);
  int (*aclrtResetDevice)(int32_t device);
  int (*aclrtCreateContext)(Context* context, int32_t device);
  int (*aclrtDestroyContext)(Context context);
  int (*aclrtSetCurrentContext)(Context context);
  int (*aclrtMalloc)(void** memory, size_t size, int policy);
  int (*aclrtFree)(void* memory);
  int (*aclrtMemcpy)(void* to, size_t capacity, const void* from, size_t count, int kind);
  int (*aclmdlLoadFromFile)(const char* path, uint32_t* model);
  int (*aclmdlUnload)(uint32_t model);
  Desc* (*aclmdlCreateDesc)();
  int (*aclmdlDestroyDesc)(Desc* desc);
  int (*aclmdlGetDesc)(Desc* desc, uint32_t model);
  size_t (*aclmdlGetNumInputs)(Desc* desc);
  size_t (*aclmdlGetNumOutputs)(Desc* desc);
  size_t (*aclmdlGetInputSizeByIndex)(Desc* desc, size_t index);
  size_t (*aclmdlGetOutputSizeByIndex)(Desc* desc, size_t index);
  int (*aclmdlGetInputDims)(const Desc* desc, size_t index, Dims* dims);
  int (*aclmdlGetInputDataType)(const Desc* desc, size_t index);
  int (*aclmdlGetOutputDataType)(const Desc* desc, size_t index);
  int (*aclmdlGetDynamicBatch)(const Desc* desc, Batches* batches);
  int (*aclmdlGetInputIndexByName)(const Desc* desc, const char* name, size_t* index);
  int (*aclmdlSetDynamicBatchSize)(uint32_t model, Dataset* inputs, size_t index, uint64_t batch);
  Dataset* (*aclmdlCreateDataset)();
  int (*aclmdlDestroyDataset)(const Dataset* dataset);
  int (*aclmdlAddDatasetBuffer)(Dataset* dataset, Buffer* buffer);
  Buffer* (*aclCreateDataBuffer)(void* data, size_t size);
  int (*aclDestroyDataBuffer)(const Buffer* buffer);
  int (*aclmdlExecute)(uint32_t model, const Dataset* inputs, Dataset* outputs);
};

}  // namespace acl
