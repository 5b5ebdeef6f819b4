// Loaded before MindSpore Lite: writes down each batch size that a model is resized to, into the file LITE_RECORD, and
// refuses those that are not in LITE_ALLOWED (numbers with blanks), as a model of dynamic batch does on an Ascend.

#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "include/api/model.h"

namespace {

bool allowed(int64_t batch) {
  const char* list = std::getenv("LITE_ALLOWED");
  if (list == nullptr) return true;
  std::istringstream sizes(list);
  for (int64_t size; sizes >> size;)
    if (size == batch) return true;
  return false;
}

}  // namespace

namespace mindspore {

Status Model::Resize(const std::vector<MSTensor>& inputs, const std::vector<std::vector<int64_t>>& dims) {
  std::ofstream(std::getenv("LITE_RECORD"), std::ios::app) << dims[0][0] << "\n";
  if (!allowed(dims[0][0])) return Status(kLiteError);
  // Here `this` is the first argument, as in the Itanium C++ ABI.
  using Function = Status (*)(Model*, const std::vector<MSTensor>&, const std::vector<std::vector<int64_t>>&);
  void* library = dlopen("libmindspore-extendrt_python.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) library = dlopen("libmindspore-lite.so", RTLD_LAZY | RTLD_NOLOAD);
  const auto real = reinterpret_cast<Function>(
      dlsym(library, "_ZN9mindspore5Model6ResizeERKSt6vectorINS_8MSTensorESaIS2_EERKS1_IS1_IlSaIlEESaIS8_EE"));
  return real(this, inputs, dims);
}

}  // namespace mindspore
