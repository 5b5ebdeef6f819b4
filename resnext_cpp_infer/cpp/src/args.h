// The command line.
#pragma once

#include <string>

#include "engine.h"

namespace resnext {

struct Args {
  EngineRequest engine;
  std::string data, labels, output, summary, logits, pixels, modelzoo_layout;
  std::string format = "jsonl";
  int batch = 0;    // 0: the artefact's, or one that suits
  int workers = 0;  // 0: one a core
  int top = 5;
  int warmup = 1;
  bool stream = false, print_manifest = false, help = false, version = false, list_engines = false, quiet = false;
};

// Error(kUsage) naming what is wrong, with the flag that may have been meant.
Args parse_args(int argc, char** argv);

extern const char* const kHelp;

}  // namespace resnext
