// Asks MindSpore's own library what it would do on an Ascend, which needs neither the device nor CANN:
// `context level SOC [LEVEL]` prints the jit level that a graph is compiled at, `context has FEATURE SOC` 1 or 0.

#include <unistd.h>

#include <cstdio>
#include <string>

#include "utils/ascend_soc_traits.h"
#include "utils/ms_context.h"

int main(int count, char** words) {
  const std::string what = words[1];
  if (what == "has") {
    std::printf("%d\n", mindspore::ascend_soc::SocSupportsAscendFeatureForSocVersion(words[3], words[2]));
  } else {
    auto context = mindspore::MsContext::GetInstance();
    context->set_param<std::string>(mindspore::MS_CTX_DEVICE_TARGET, "Ascend");
    context->set_ascend_soc_version(words[2]);
    context->set_jit_status(mindspore::JitStatus::kJitCompiling);
    if (count > 3) context->set_param<std::string>(mindspore::MS_CTX_JIT_LEVEL, words[3]);
    std::printf("%s\n", context->GetJitLevel().c_str());
  }
  std::fflush(stdout);
  _exit(0);  // the library is not made to be torn down without Python
}
