// The libjpeg-turbo that decodes: the one that this program is linked with, or another that is loaded in its place.
#pragma once

#include <cstdio>
// jpeglib.h needs cstdio before it.
#include <jpeglib.h>

#include <string>

#if !defined(LIBJPEG_TURBO_VERSION) || !defined(JCS_EXTENSIONS)
#error "libjpeg-turbo 1.5 or later is needed (Debian: libjpeg-dev)"
#endif

namespace resnext {

struct JpegLibrary {
  decltype(&jpeg_std_error) std_error;
  decltype(&jpeg_CreateDecompress) create;
  decltype(&jpeg_destroy_decompress) destroy;
  decltype(&jpeg_read_header) read_header;
  decltype(&jpeg_start_decompress) start;
  decltype(&jpeg_read_scanlines) read;
  decltype(&jpeg_skip_scanlines) skip;
  decltype(&jpeg_crop_scanline) crop;
  decltype(&jpeg_finish_decompress) finish;
  decltype(&jpeg_input_complete) input_complete;
  decltype(&jpeg_resync_to_restart) resync;
};

const JpegLibrary& jpeg_library();

// Takes the library in the file `path` from now on, so that two programs in one process decode with one library; or
// with nullptr the linked one.
// Returns why it cannot be used, and changes nothing then; '' where it is used. Not while another thread decodes.
std::string use_jpeg_library(const char* path);

}  // namespace resnext
