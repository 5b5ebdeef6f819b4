// Frames on standard input and output, so that another program can feed a model.
//
// A frame is a kind (one byte), the length of what follows (uint32) and that; integers are little-endian. At the start
// the program sends M, the manifest. It answers I (uint32 n, then uint8 (n, size, size, 3)) and T (uint32 n, then
// float32 (n, 3, size, size)) with L (float32 (n, classes)) or E (the exit code as a byte, then a line). Q, or the end
// of the input, ends it. A frame holds at most 64 MiB of images, or one image where that is larger; what it announces
// is taken as it arrives. SIGINT or SIGTERM ends a wait for a frame at once.
#pragma once

#include "engine.h"

namespace resnext {

// Serves until the input ends; Error(kData) on a frame that is none, Error(kInterrupted) on a signal.
void serve_stream(Model& model, int input, int output);

}  // namespace resnext
