/* The pixel library: from the bytes of a JPEG or PNG to uint8 pixels, equal to the bit to resnext_core/data/render.py.
 *
 * One resnext_pixels serves one thread at a time and keeps its buffers from image to image; what is allocated for each
 * image is libjpeg's and libpng's, and small. Nothing here takes a lock, prints, or looks at the environment.
 */
#ifndef RESNEXT_PIXELS_H_
#define RESNEXT_PIXELS_H_

#include <stddef.h>
#include <stdint.h>

#define RESNEXT_PIXELS_ABI 1

#if defined(__GNUC__)
#define RESNEXT_PIXELS_API __attribute__((visibility("default")))
#else
#define RESNEXT_PIXELS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct resnext_pixels resnext_pixels;

/* What a call returns. */
enum {
  RESNEXT_PIXELS_OK = 0,
  RESNEXT_PIXELS_UNREAD = 1,   /* not a format that is read here, or broken: resnext_pixels_message says why */
  RESNEXT_PIXELS_NO_MEMORY = 2,
  RESNEXT_PIXELS_WRONG = 3,    /* an argument that cannot be: resnext_pixels_message says which */
};

enum { RESNEXT_PIXELS_JPEG = 1, RESNEXT_PIXELS_PNG = 2 };

typedef struct {
  int32_t width, height; /* pixels, as stored */
  int32_t format;        /* RESNEXT_PIXELS_JPEG or RESNEXT_PIXELS_PNG */
  int32_t bits;          /* of a sample */
  int32_t reductions;    /* by which it may be reduced while it decodes: 1 | 2 | 4 | 8 for a JPEG, else 1 */
} resnext_pixels_header;

enum { RESNEXT_PIXELS_ANTIALIAS = 0, RESNEXT_PIXELS_BICUBIC = 1, RESNEXT_PIXELS_PLAIN = 2 };
enum { RESNEXT_PIXELS_SHORTER_SIDE = 0, RESNEXT_PIXELS_SQUASH = 1 };

/* A PreprocessSpec (resnext_core/model/preprocess.py). */
typedef struct {
  int32_t size, resize; /* 1 to 8192, resize >= size */
  int32_t mode, filter;
  int32_t scaled_decode; /* 0 or 1 */
  int32_t orientation;   /* by which the image is turned first: EXIF's, 1 to 8 */
} resnext_pixels_evaluation;

/* Operations of resnext_core/data/operations.py, with its values in its order. */
enum {
  RESNEXT_PIXELS_BRIGHTNESS = 1,
  RESNEXT_PIXELS_CONTRAST = 2,
  RESNEXT_PIXELS_SATURATION = 3,
  RESNEXT_PIXELS_SHARPNESS = 4,
  RESNEXT_PIXELS_AUTOCONTRAST = 5,
  RESNEXT_PIXELS_EQUALIZE = 6,
  RESNEXT_PIXELS_INVERT = 7,
  RESNEXT_PIXELS_POSTERIZE = 8,
  RESNEXT_PIXELS_SOLARIZE = 9,
  RESNEXT_PIXELS_SOLARIZE_ADD = 10,
  RESNEXT_PIXELS_AFFINE = 11,
  RESNEXT_PIXELS_BRANCH = 12,
  RESNEXT_PIXELS_ADD = 13,
  RESNEXT_PIXELS_MERGE = 14,
  RESNEXT_PIXELS_ERASE = 15,
  RESNEXT_PIXELS_ERASE_NOISE = 16,
};

enum { RESNEXT_PIXELS_VALUES = 11 };

typedef struct {
  int32_t kind;
  int32_t count; /* of values */
  double values[RESNEXT_PIXELS_VALUES];
} resnext_pixels_operation;

/* A Plan (resnext_core/data/plan.py). The box is in pixels of the whole image, turned. */
typedef struct {
  double left, top, width, height;
  int32_t least_width, least_height; /* sides that a JPEG keeps when it is reduced while it decodes; 0 and 0: it is not */
  int32_t size;                      /* 1 to 8192 */
  int32_t filter;
  int32_t flip;                      /* 0 or 1 */
  int32_t orientation;               /* 1 to 8 */
  int32_t operation_count;
  const resnext_pixels_operation* operations;
} resnext_pixels_plan;

/* RESNEXT_PIXELS_ABI of the library. */
RESNEXT_PIXELS_API int resnext_pixels_abi(void);

/* Decodes with the libjpeg-turbo in the file `path` from now on, in place of the one that the library is linked with;
 * with NULL again with that one. Returns NULL, or why that cannot be; then nothing is changed. Not while an image is
 * open. */
RESNEXT_PIXELS_API const char* resnext_pixels_use_jpeg(const char* path);

/* Which instructions may be used: 0 those that any processor has, 1 AVX2 too, 2 (as it begins) AVX-512 too: for tests. */
RESNEXT_PIXELS_API void resnext_pixels_use_simd(int most);

/* NULL where there is no memory. */
RESNEXT_PIXELS_API resnext_pixels* resnext_pixels_new(void);
RESNEXT_PIXELS_API void resnext_pixels_free(resnext_pixels* pixels);

/* Reads the header of an image of `size` bytes, which must stay until the next call with these pixels but
 * resnext_pixels_message has returned. */
RESNEXT_PIXELS_API int resnext_pixels_open(resnext_pixels* pixels, const uint8_t* data, size_t size,
                                           resnext_pixels_header* header);

/* Decodes the image that was opened last, once; writes uint8 (size, size, 3). After an error `out` may be half written. */
RESNEXT_PIXELS_API int resnext_pixels_evaluate(resnext_pixels* pixels, const resnext_pixels_evaluation* how, uint8_t* out);
RESNEXT_PIXELS_API int resnext_pixels_train(resnext_pixels* pixels, const resnext_pixels_plan* plan, uint8_t* out);

/* Forgets the image that was opened last. */
RESNEXT_PIXELS_API void resnext_pixels_close(resnext_pixels* pixels);

/* Operations on uint8 (size, size, 3), in place. */
RESNEXT_PIXELS_API int resnext_pixels_operate(resnext_pixels* pixels, const resnext_pixels_operation* operations,
                                              int32_t count, int32_t size, uint8_t* image);

/* Why the last call with these pixels did not return RESNEXT_PIXELS_OK: one line, until the next call. */
RESNEXT_PIXELS_API const char* resnext_pixels_message(const resnext_pixels* pixels);

#ifdef __cplusplus
}
#endif

#endif /* RESNEXT_PIXELS_H_ */
