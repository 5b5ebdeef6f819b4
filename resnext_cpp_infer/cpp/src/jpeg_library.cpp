#include "jpeg_library.h"

#include <dlfcn.h>

#include <csetjmp>
#include <cstring>

namespace resnext {
namespace {

const JpegLibrary kLinked = {
    jpeg_std_error,       jpeg_CreateDecompress, jpeg_destroy_decompress, jpeg_read_header,
    jpeg_start_decompress, jpeg_read_scanlines,  jpeg_skip_scanlines,     jpeg_crop_scanline,
    jpeg_finish_decompress, jpeg_input_complete, jpeg_resync_to_restart,
};

JpegLibrary current = kLinked;

struct Trial {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  std::jmp_buf jump{};
};

[[noreturn]] void refused(j_common_ptr info) { std::longjmp(static_cast<Trial*>(info->client_data)->jump, 1); }

// jpeg_CreateDecompress refuses a caller that was compiled for another interface: by its version, and by the size of
// the structure.
bool fits(const JpegLibrary& library) {
  Trial trial;
  trial.info.err = library.std_error(&trial.errors);
  trial.errors.error_exit = refused;
  trial.info.client_data = &trial;
  if (setjmp(trial.jump) != 0) return false;
  library.create(&trial.info, JPEG_LIB_VERSION, sizeof(jpeg_decompress_struct));
  library.destroy(&trial.info);
  return true;
}

}  // namespace

const JpegLibrary& jpeg_library() { return current; }

std::string use_jpeg_library(const char* path) {
  if (path == nullptr) {
    current = kLinked;
    return "";
  }
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);  // for the rest of the process
  if (library == nullptr) return dlerror();
  JpegLibrary found{};
  const auto take = [library](auto& function, const char* name) {
    void* symbol = dlsym(library, name);
    std::memcpy(&function, &symbol, sizeof symbol);
    return symbol != nullptr;
  };
  if (!take(found.std_error, "jpeg_std_error") || !take(found.create, "jpeg_CreateDecompress") ||
      !take(found.destroy, "jpeg_destroy_decompress") || !take(found.read_header, "jpeg_read_header") ||
      !take(found.start, "jpeg_start_decompress") || !take(found.read, "jpeg_read_scanlines") ||
      !take(found.skip, "jpeg_skip_scanlines") || !take(found.crop, "jpeg_crop_scanline") ||
      !take(found.finish, "jpeg_finish_decompress") || !take(found.input_complete, "jpeg_input_complete") ||
      !take(found.resync, "jpeg_resync_to_restart"))
    return "no libjpeg-turbo 1.5 or later";
  if (!fits(found)) return "a libjpeg of another interface than " + std::to_string(JPEG_LIB_VERSION);
  current = found;
  return "";
}

}  // namespace resnext
