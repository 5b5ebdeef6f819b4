// What the engine `onnx` calls of ONNX Runtime, declared here: its packages on PyPI have the library and no headers.
//
// ONNX Runtime's C interface is a table of functions. Its order never changes: releases add at the end, and the runtime
// asserts the size of each version's part. So a function is its place in the table, and the types are opaque. Places
// are those of API version 16 (ONNX Runtime 1.16), which every later release serves. docs/decisions/0013 says why.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kApiVersion = 16;

struct Base {
  const void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};

struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct TypeInfo;
struct TensorInfo;
struct Value;
struct MemoryInfo;
struct Allocator;
struct Metadata;
struct CudaOptions;
struct CannOptions;

enum ElementType : int { kFloat = 1, kUint8 = 2 };
enum Logging : int { kErrors = 3 };
enum AllocatorType : int { kArena = 1 };
enum MemoryType : int { kDefault = 0 };

// The place of a function, and its type.
template <size_t Place, typename Function>
struct Entry;
template <size_t Place, typename Result, typename... Arguments>
struct Entry<Place, Result(Arguments...)> {
  using Pointer = Result (*)(Arguments...);
  static Pointer of(const void* const* api) { return reinterpret_cast<Pointer>(const_cast<void*>(api[Place])); }
};

using ErrorMessage = Entry<2, const char*(const Status*)>;
using CreateEnv = Entry<3, Status*(int, const char*, Env**)>;
using CreateSession = Entry<7, Status*(const Env*, const char*, const SessionOptions*, Session**)>;
using Run = Entry<9, Status*(Session*, const RunOptions*, const char* const*, const Value* const*, size_t,
                             const char* const*, size_t, Value**)>;
using CreateSessionOptions = Entry<10, Status*(SessionOptions**)>;
using SetIntraOpThreads = Entry<24, Status*(SessionOptions*, int)>;
using SetInterOpThreads = Entry<25, Status*(SessionOptions*, int)>;
using InputCount = Entry<30, Status*(const Session*, size_t*)>;
using OutputCount = Entry<31, Status*(const Session*, size_t*)>;
using InputType = Entry<33, Status*(const Session*, size_t, TypeInfo**)>;
using OutputType = Entry<34, Status*(const Session*, size_t, TypeInfo**)>;
using InputName = Entry<36, Status*(const Session*, size_t, Allocator*, char**)>;
using OutputName = Entry<37, Status*(const Session*, size_t, Allocator*, char**)>;
using CreateTensorWithData = Entry<49, Status*(const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**)>;
using CastToTensorInfo = Entry<55, Status*(const TypeInfo*, const TensorInfo**)>;
using GetElementType = Entry<60, Status*(const TensorInfo*, int*)>;
using DimensionCount = Entry<61, Status*(const TensorInfo*, size_t*)>;
using GetDimensions = Entry<62, Status*(const TensorInfo*, int64_t*, size_t)>;
using CreateCpuMemoryInfo = Entry<69, Status*(int, int, MemoryInfo**)>;
using FreeWith = Entry<76, Status*(Allocator*, void*)>;
using DefaultAllocator = Entry<78, Status*(Allocator**)>;
using ReleaseEnv = Entry<92, void(Env*)>;
using ReleaseStatus = Entry<93, void(Status*)>;
using ReleaseMemoryInfo = Entry<94, void(MemoryInfo*)>;
using ReleaseSession = Entry<95, void(Session*)>;
using ReleaseValue = Entry<96, void(Value*)>;
using ReleaseTypeInfo = Entry<98, void(TypeInfo*)>;
using ReleaseSessionOptions = Entry<100, void(SessionOptions*)>;
using GetMetadata = Entry<111, Status*(const Session*, Metadata**)>;
using LookupMetadata = Entry<116, Status*(const Metadata*, Allocator*, const char*, char**)>;
using ReleaseMetadata = Entry<118, void(Metadata*)>;
using AddSessionConfig = Entry<130, Status*(SessionOptions*, const char*, const char*)>;
using AppendCuda = Entry<204, Status*(SessionOptions*, const CudaOptions*)>;
using CreateCudaOptions = Entry<205, Status*(CudaOptions**)>;
using UpdateCudaOptions = Entry<206, Status*(CudaOptions*, const char* const*, const char* const*, size_t)>;
using ReleaseCudaOptions = Entry<208, void(CudaOptions*)>;
using AppendCann = Entry<220, Status*(SessionOptions*, const CannOptions*)>;
using CreateCannOptions = Entry<221, Status*(CannOptions**)>;
using UpdateCannOptions = Entry<222, Status*(CannOptions*, const char* const*, const char* const*, size_t)>;
using ReleaseCannOptions = Entry<224, void(CannOptions*)>;

}  // namespace ort
