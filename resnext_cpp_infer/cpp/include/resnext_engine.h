/* The boundary between resnext-infer and its engines: plain C, so that either side may be built by another compiler.
 *
 * An engine is a shared library `libresnext_engine_<name>.so` with one exported function, resnext_engine_get. */
#ifndef RESNEXT_ENGINE_H
#define RESNEXT_ENGINE_H

#include <stddef.h>
#include <stdint.h>

/* Changes with every change of this file. */
#define RESNEXT_ENGINE_ABI 1

#ifdef __cplusplus
extern "C" {
#endif

/* A model that is open on a device. */
typedef struct resnext_model resnext_model;

typedef enum { RESNEXT_IMAGES_UINT8 = 0, RESNEXT_TENSOR_FLOAT32 = 1 } resnext_input;

typedef struct {
  const char* path;   /* the artefact; may be empty for `null` */
  const char* device; /* "cpu", "cuda", "cann", "ascend310", ... */
  int32_t device_id;
  int32_t threads;       /* 0: as the runtime likes */
  const char* runtime;   /* path of the runtime's library, or empty: look for it as the system does */
  const char* precision; /* empty: as the artefact is */
  int32_t batch;         /* the batch that is going to be used, a hint */
  int32_t image_size;    /* pixels, 0 where only the artefact knows */
  int32_t classes;       /* 0 where only the artefact knows */
} resnext_request;

typedef struct {
  uint32_t abi; /* RESNEXT_ENGINE_ABI of the engine */
  const char* name;
  const char* devices; /* separated by blanks */

  /* Opens a model. NULL on an error, with one line in `error`. */
  resnext_model* (*open)(const resnext_request* request, char* error, size_t error_size);

  /* The runtime's name and version, the manifest inside the artefact (JSON) or NULL, what the graph takes, and its
   * fixed batch or 0. The strings live as long as the model. */
  const char* (*version)(const resnext_model*);
  const char* (*manifest)(const resnext_model*);
  resnext_input (*input)(const resnext_model*);
  int32_t (*fixed_batch)(const resnext_model*);

  /* Computes `n` rows: uint8 (n, S, S, 3) or float32 (n, 3, S, S), as `input` says, to float32 (n, classes).
   * `capacity` is the number of floats that fit into `logits`. 0 when done, else 1 with one line in `error`. */
  int (*run)(resnext_model*, const void* rows, int32_t n, float* logits, size_t capacity, char* error,
             size_t error_size);

  void (*close)(resnext_model*);
} resnext_engine;

/* Returns the engine, or NULL where it does not speak `abi`; then `*own` is what it speaks. */
typedef const resnext_engine* (*resnext_engine_get_t)(uint32_t abi, uint32_t* own);

#define RESNEXT_EXPORT __attribute__((visibility("default")))
RESNEXT_EXPORT const resnext_engine* resnext_engine_get(uint32_t abi, uint32_t* own);

#ifdef __cplusplus
}
#endif
#endif
